//! The layers of an image, applied one on the other.

use std::io::Read;

use super::error::{LayerError, Refusal};
use super::limits::{Budget, Limits};
use super::merge::merge;
use super::names::{make_plain, shown};
use super::notes::Notes;
use super::read::{Layer, Sinks, read};
use super::walk::{Way, directory};
use crate::spool::Spool;
use crate::tree::{Attributes, Kind, Tree};

/// Permissions of a root that no layer has an entry for.
const ROOT_PERMISSIONS: u16 = 0o755;

/// Builds the tree of an image from its layers, the lowest one first.
///
/// ```
/// use kiln_rootfs::{Layers, Limits, Spool, SpoolLimits};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let spool = Spool::new(&std::env::temp_dir(), SpoolLimits { reserve_bytes: 0, ..SpoolLimits::default() })?;
/// let mut layers = Layers::new(spool, Limits::default());
/// let report = layers.apply([0; 1024].as_slice())?; // an empty archive
/// assert_eq!(report.entries, 0);
/// let (tree, _spool, notes) = layers.finish();
/// assert_eq!((tree.len(), notes.lines().len()), (1, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Layers {
    tree: Tree,
    spool: Spool,
    budget: Budget,
    notes: Notes,
    layer: usize,
    has_whiteout_devices: bool,
    is_whole: bool,
}

/// What a layer had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerReport {
    /// Members of the archive, marks included.
    pub entries: u64,
    /// Marks that remove what lower layers have.
    pub marks: u64,
    /// Bytes of the archive, unpacked.
    pub bytes: u64,
}

impl Layers {
    /// Starts with an empty root directory.
    pub fn new(spool: Spool, limits: Limits) -> Self {
        let root = Attributes { permissions: ROOT_PERMISSIONS, ..Attributes::default() };
        Self {
            tree: Tree::new(root),
            spool,
            budget: Budget::new(limits),
            notes: Notes::default(),
            layer: 0,
            has_whiteout_devices: false,
            is_whole: true,
        }
    }

    /// Applies the next layer: an unpacked tar archive. All of it is read, what is behind its end mark included.
    ///
    /// # Errors
    /// If the layer is refused. The tree is useless then, and nothing more can be done with it.
    ///
    /// # Panics
    /// If a layer was refused before.
    pub fn apply(&mut self, layer: impl Read) -> Result<LayerReport, LayerError> {
        assert!(self.is_whole, "no layer follows one that was refused");
        self.is_whole = false;
        self.layer += 1;
        let Self { tree, spool, budget, notes, .. } = self;
        let layer = read(layer, &mut Sinks { tree, spool, budget, notes })
            .map_err(|(entry, path, reason)| self.error(entry, path.as_deref(), reason))?;
        let Layer { journal, entries, bytes, has_whiteout_devices } = layer;
        merge(&mut self.tree, &mut self.budget, &journal)
            .map_err(|(entry, path, reason)| self.error(entry, Some(&path), reason))?;
        self.spool.flush().map_err(|error| self.error(entries, None, error.into()))?;
        self.has_whiteout_devices |= has_whiteout_devices;
        self.is_whole = true;
        Ok(LayerReport { entries: entries.into(), marks: journal.marks.len() as u64, bytes })
    }

    /// Makes a directory and those above it, if they are not there: the working directory of an image, for example.
    /// Symlinks on the way are followed inside the tree.
    ///
    /// # Errors
    /// If the path can't be one, or a file is in the way. The tree is as it was, or has some of the directories above.
    ///
    /// # Panics
    /// If a layer was refused before.
    pub fn make_directory(&mut self, path: &[u8]) -> Result<(), LayerError> {
        assert!(self.is_whole, "a tree is not used after a layer was refused");
        let mut plain = Vec::new();
        let made = match make_plain(path, &mut plain) {
            Ok(()) => directory(&mut self.tree, &mut self.budget, &plain, Way::Make).map(drop),
            Err(fault) => Err(Refusal::Path(fault)),
        };
        made.map_err(|reason| self.error(0, Some(path), reason))
    }

    /// The tree of all layers, and the contents of its files.
    ///
    /// The tree also has nodes that lost their last name or never had one: what later layers have removed, for example.
    /// The root does not lead to them, so a walk from it does not meet them.
    ///
    /// # Panics
    /// If a layer was refused.
    pub fn finish(mut self) -> (Tree, Spool, Notes) {
        assert!(self.is_whole, "a tree is not used after a layer was refused");
        if self.has_whiteout_devices {
            self.remove_whiteout_devices();
        }
        (self.tree, self.spool, self.notes)
    }

    /// Removes character devices 0:0 under all of their names. An overlay filesystem takes such a device as "this name is
    /// removed", so what it hid is not there either. They are removed only now, because hard links may be to them, and
    /// later layers may replace them.
    fn remove_whiteout_devices(&mut self) {
        let mut directories = vec![(Tree::ROOT, Vec::new())];
        while let Some((directory, path)) = directories.pop() {
            let mut devices: Vec<Box<[u8]>> = Vec::new();
            for (name, child) in self.tree.children(directory).into_iter().flatten() {
                match self.tree.node(*child).kind {
                    Kind::Directory(_) => directories.push((*child, joined(&path, name))),
                    Kind::CharacterDevice { major: 0, minor: 0 } => devices.push(name.clone()),
                    _ => {}
                }
            }
            for name in devices {
                self.notes.whiteout_devices.add(&joined(&path, &name));
                self.tree.children_mut(directory).and_then(|children| children.remove(&name));
            }
        }
    }

    fn error(&self, entry: u32, path: Option<&[u8]>, reason: Refusal) -> LayerError {
        LayerError { layer: self.layer, entry: entry.into(), path: path.map(shown), reason: Box::new(reason) }
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
