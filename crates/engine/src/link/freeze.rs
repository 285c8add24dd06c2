//! Requests around a snapshot: is the guest in use, freeze its commands, thaw them.

use kiln_wire::{Activity, Message, Reply};
use tokio::time::timeout;

use super::stream::StreamError;
use super::transport::{ANSWER_DEADLINE, GuestLink};

impl GuestLink {
    /// Freezes all commands of the guest once its drivers are loaded. They stay frozen, also under another link, until
    /// [`thaw`](Self::thaw) or [`sync`](Self::sync). Commands that are requested meanwhile start only then. A frozen
    /// command can still be killed. Freezing a frozen guest changes nothing.
    ///
    /// # Errors
    /// The agent's fault: `unsupported` without control groups, `timed_out` if a command did not freeze in time, `busy`
    /// while another request freezes. The commands run on then. They also run on if the answer does not arrive in time.
    pub async fn freeze(&self) -> Result<(), StreamError> {
        self.ask(&Message::Freeze, "freeze").await
    }

    /// Thaws the commands of a guest. If they are not frozen, nothing happens.
    ///
    /// # Errors
    /// The link is lost, or the guest's kernel refused.
    pub async fn thaw(&self) -> Result<(), StreamError> {
        self.ask(&Message::Thaw, "thaw").await
    }

    /// What runs, what is open, and what programs of the guest declare.
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
