//! Files of the guest.

use kiln_wire::{Done, FileRequest, FileStat, FilesRequest, Message, ReadRange, Reply, Text, WriteMode};

use super::stream::{Event, StreamError, StreamReceiver, StreamSender, beside};
use super::transport::GuestLink;

impl GuestLink {
    /// Starts one file operation; see [`FileRequest`] for what goes over the stream.
    ///
    /// # Errors
    /// The link is lost, or the request does not fit a frame.
    pub fn files(&self, request: FileRequest) -> Result<(StreamSender, StreamReceiver), StreamError> {
        self.open(&Message::Files(Box::new(FilesRequest { jail: None, request })))
    }

    /// Reads a whole file of at most `limit_bytes`.
    ///
    /// # Errors
    /// The agent's fault, or [`StreamError::TooLarge`].
    pub async fn read_file(&self, path: impl Into<Text>, limit_bytes: usize) -> Result<Vec<u8>, StreamError> {
        let request = FileRequest::Read { path: path.into(), range: ReadRange::default() };
        let (_sender, mut receiver) = self.files(request)?;
        let mut content = Vec::new();
        loop {
            match receiver.next().await? {
                Event::Data(_, bytes) if content.len() + bytes.len() > limit_bytes => {
                    return Err(StreamError::TooLarge { bytes: (content.len() + bytes.len()) as u64 });
                }
                Event::Data(_, bytes) => content.extend_from_slice(&bytes),
                Event::Reply(reply) => {
                    if let Reply::Stat(stat) = *reply {
                        content.reserve(usize::try_from(stat.size).unwrap_or(usize::MAX).min(limit_bytes));
                    }
                }
                Event::Eof => {}
                Event::Done(_) => return Ok(content),
                other => return Err(StreamError::unexpected(&other)),
            }
        }
    }

    /// Replaces a whole file.
    ///
    /// # Errors
    /// The agent's fault; the old file is unchanged then.
    pub async fn write_file(
        &self,
        path: impl Into<Text>,
        content: &[u8],
        permissions: Option<u32>,
    ) -> Result<Done, StreamError> {
        let request = FileRequest::Write { path: path.into(), mode: WriteMode::Replace, permissions, owner: None };
        let (sender, mut receiver) = self.files(request)?;
        let feed = async {
            // If this fails, the receiver returns the reason.
            let _ = sender.send(content).await;
            let _ = sender.eof().await;
        };
        beside(receiver.done(), feed).await
    }

    /// Returns what is at a path.
    ///
    /// # Errors
    /// The agent's fault.
    pub async fn stat(&self, path: impl Into<Text>, follow: bool) -> Result<FileStat, StreamError> {
        let (_sender, receiver) = self.files(FileRequest::Stat { path: path.into(), follow })?;
        match receiver.reply().await? {
            Reply::Stat(stat) => Ok(stat),
            other => Err(StreamError::unexpected(&other)),
        }
    }
}

impl StreamReceiver {
    /// Waits for the end of a stream that carries no data.
    ///
    /// # Errors
    /// The stream ended in another way than with `Done`.
    pub async fn done(&mut self) -> Result<Done, StreamError> {
        loop {
            match self.next().await? {
                Event::Done(done) => return Ok(done),
                Event::Reply(_) | Event::Eof => {}
                other => return Err(StreamError::unexpected(&other)),
            }
        }
    }
}
