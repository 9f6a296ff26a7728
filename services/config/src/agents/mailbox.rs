//! What others have to say to a connected agent's stream: that it's over, that the
//! agent has other labels now, and messages to be told once, such as commands.
//!
//! One small lock and one wake-up for each connected agent: of ten thousand agents nearly all have nothing waiting.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_rules::Labels;
use tokio::sync::Notify;
use tonic::Status;

use crate::limits::MAX_WAITING_MESSAGES;

/// The place where things wait for a stream.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    news: Notify,
}

/// What waits.
#[derive(Debug, Default)]
struct Mail {
    ended: Option<Ended>,
    labels: Option<Arc<Labels>>,
    once: VecDeque<Update>,
}

/// Why a stream is over before its time.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// The same session opened a newer one.
    Superseded,
    /// The agent is refused after all.
    Refused(Status),
}

impl Mailbox {
    /// Ends the stream; the first reason counts.
    pub(crate) fn end(&self, why: Ended) {
        self.mail().ended.get_or_insert(why);
        self.news.notify_one();
    }

    /// Leaves new labels; of several the newest count.
    pub(crate) fn relabel(&self, labels: Arc<Labels>) {
        self.mail().labels = Some(labels);
        self.news.notify_one();
    }

    /// Leaves a message to be told once. It's given back if too many wait: the agent takes none.
    pub(crate) fn leave(&self, message: Update) -> Result<(), Box<Update>> {
        let mut mail = self.mail();
        if mail.once.len() >= MAX_WAITING_MESSAGES {
            return Err(Box::new(message));
        }
        mail.once.push_back(message);
        drop(mail);
        self.news.notify_one();
        Ok(())
    }

    /// Why the stream is over, if it is.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.mail().ended.clone()
    }

    /// The labels that were left.
    pub(crate) fn labels(&self) -> Option<Arc<Labels>> {
        self.mail().labels.take()
    }

    /// The next message to be told once.
    pub(crate) fn take(&self) -> Option<Update> {
        self.mail().once.pop_front()
    }

    /// Resolves when something was left since it last did.
    pub(crate) async fn arrival(&self) {
        self.news.notified().await;
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use logmesh_proto::fleet::v1::Bookmark;

    use super::*;

    #[tokio::test]
    async fn mail_is_bounded_and_the_end_comes_first() {
        let mailbox = Mailbox::default();
        for _ in 0..MAX_WAITING_MESSAGES {
            mailbox.leave(Update::Bookmark(Bookmark {})).unwrap();
        }
        mailbox.leave(Update::Bookmark(Bookmark {})).unwrap_err();
        mailbox.arrival().await;
        assert!(mailbox.take().is_some() && mailbox.ended().is_none());
        mailbox.leave(Update::Bookmark(Bookmark {})).unwrap();
        mailbox.end(Ended::Superseded);
        mailbox.end(Ended::Refused(Status::already_exists("x")));
        assert!(matches!(mailbox.ended(), Some(Ended::Superseded)));
    }
}
