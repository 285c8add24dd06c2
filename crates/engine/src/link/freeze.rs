//! What is asked of a guest around a snapshot: whether it is in use, to stand still, to go on.

use kiln_wire::{Activity, Message, Reply};
use tokio::time::timeout;

use super::stream::StreamError;
use super::transport::{ANSWER_DEADLINE, GuestLink};

impl GuestLink {
    /// Stops every command of the guest where it is, once all its drivers are loaded. It stays so, also under another
    /// link, until [`thaw`](Self::thaw) or [`sync`](Self::sync); commands that are asked for meanwhile start then. A
    /// frozen command can still be killed. A guest that is frozen already stays so.
    ///
    /// # Errors
    /// The agent's fault: `unsupported` without control groups, `timed_out` where a command does not stand still, `busy`
    /// while another request freezes. Commands go on then, and so they do where the answer does not come in time.
    pub async fn freeze(&self) -> Result<(), StreamError> {
        self.ask(&Message::Freeze, "freeze").await
    }

    /// Lets a frozen guest's commands go on; nothing happens to one that is not frozen.
    ///
    /// # Errors
    /// The link is lost, or the guest's kernel refuses.
    pub async fn thaw(&self) -> Result<(), StreamError> {
        self.ask(&Message::Thaw, "thaw").await
    }

    /// What runs, what is open and what programs of the guest declare.
    ///
    /// # Errors
    /// The link is lost, or the agent does not answer.
    pub async fn activity(&self) -> Result<Activity, StreamError> {
        let (_sender, receiver) = self.open(&Message::Activity)?;
        match timeout(ANSWER_DEADLINE, receiver.reply()).await {
            Ok(Ok(Reply::Activity(activity))) => Ok(*activity),
            Ok(Ok(other)) => Err(StreamError::unexpected(&other)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.no_answer("activity")),
        }
    }
}
