//! Why an image can't be written or read.

use std::io;

/// Why an image was not written. The output holds a part of it, or nothing.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The contents of a file can't be read.
    #[error("failed to read the contents of `{path}`")]
    Source {
        /// The file in the tree.
        path: String,
        /// What the source returned.
        #[source]
        source: io::Error,
    },
    /// The output returned an error.
    #[error("failed to write the image")]
    Output(#[source] io::Error),
    /// The image is larger than allowed, or than the format can be.
    #[error("the image needs {bytes} bytes, and at most {bytes_max} are allowed")]
    TooLarge {
        /// Size that it would have.
        bytes: u64,
        /// Size that it may have.
        bytes_max: u64,
    },
    /// A file is larger than Linux can open.
    #[error("`{path}` has {bytes} bytes, and Linux supports files of at most 2^63 - 1")]
    FileTooLarge {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// The name of an extended attribute has no form in the format.
    #[error("`{path}` has the extended attribute `{name}`, and EROFS can't hold one of that name")]
    XattrName {
        /// The node that has it.
        path: String,
        /// Its name.
        name: String,
    },
    /// The value of an extended attribute is too long for the format.
    #[error("the extended attribute `{name}` of `{path}` has {bytes} bytes, and EROFS holds at most 65535")]
    XattrValue {
        /// The node that has it.
        path: String,
        /// Its name.
        name: String,
        /// Length of the value.
        bytes: usize,
    },
    /// All extended attributes of one node together are too long for the format.
    #[error("the extended attributes of `{path}` have {bytes} bytes, and EROFS holds at most {bytes_max} per file")]
    Xattrs {
        /// The node that has them.
        path: String,
        /// Bytes that they need.
        bytes: u64,
        /// Bytes that there may be.
        bytes_max: u64,
    },
    /// The number of a device is too large for Linux.
    #[error("`{path}` is device {major}:{minor}, and Linux has 12 bits for the first number and 20 for the second")]
    Device {
        /// The device.
        path: String,
        /// Number of the driver.
        major: u32,
        /// Number of the device.
        minor: u32,
    },
    /// A symlink that Linux can't follow.
    #[error("`{path}` is a symlink of {bytes} bytes, and Linux supports 1 to 4095 bytes without NUL")]
    Symlink {
        /// The symlink.
        path: String,
        /// Length of its target.
        bytes: usize,
    },
    /// The tree is not one: a name has a slash, a directory has two names, parts of a file overlap.
    #[error("`{path}` is not valid in a tree: {problem}")]
    Invalid {
        /// The node, or the directory that has it.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Why an image was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The image can't be read.
    #[error("failed to read the image")]
    Input(#[source] io::Error),
    /// It is not an image, or uses features that are not supported.
    #[error("it is not an EROFS image that can be read: {0}")]
    NotAnImage(&'static str),
    /// The file is shorter than the image in it.
    #[error("the image is truncated: it has {bytes} of {claimed} bytes")]
    Truncated {
        /// Bytes that there are.
        bytes: u64,
        /// Bytes that its superblock promises.
        claimed: u64,
    },
    /// A part of it contradicts the format or another part.
    #[error("the image is malformed at inode {inode}: {problem}")]
    Malformed {
        /// Number of the inode.
        inode: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// It has more of something than the limits allow.
    #[error("the image has too many {what}")]
    TooMany {
        /// What it has.
        what: &'static str,
    },
}
