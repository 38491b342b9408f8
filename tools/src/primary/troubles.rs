//! Why backups have no session, kept for operators and told once.

use std::collections::BTreeMap;

use arbiter::NodeId;
use checkpoint::{Note, message::Refusal, primary::Event};

use super::core::Core;
use crate::{
    control::{EventKind, Severity},
    node::record_note,
};

/// Why a backup has no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It answers, and does not take the session.
    Refused(String),
    /// It does not answer as a backup would. The words name it.
    Unreachable(String),
}

impl Trouble {
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Refused(why) | Self::Unreachable(why) => why,
        }
    }
}

/// The last trouble with each backup.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<NodeId, Trouble>);

impl Troubles {
    /// Keeps why there is no session with `backup`; `true` if that is news.
    #[must_use]
    pub(super) fn begin(&mut self, backup: &NodeId, trouble: Trouble) -> bool {
        let before = self.0.insert(backup.clone(), trouble.clone());
        before != Some(trouble)
    }

    /// There is a session, or another try, or none is wanted.
    pub(super) fn end(&mut self, backup: &NodeId) {
        self.0.remove(backup);
    }

    pub(super) fn of(&self, backup: &NodeId) -> Option<&Trouble> {
        self.0.get(backup)
    }

    /// All of it, backup by backup; `None` if there is none.
    pub(super) fn words(&self) -> Option<String> {
        let words = self.0.iter().map(|(backup, trouble)| match trouble {
            Trouble::Refused(why) => format!("{backup} refuses: {why}"),
            Trouble::Unreachable(why) => why.clone(),
        });
        (!self.0.is_empty()).then(|| words.collect::<Vec<_>>().join("; "))
    }
}

impl Core {
    /// The machine notes every refusal; operators hear of it when it changes.
    pub(super) fn on_link_refused(&mut self, backup: NodeId, refusal: Refusal) {
        let why = refusal.to_string();
        if self.peers.address(&backup).is_some()
            && self.troubles.begin(&backup, Trouble::Refused(why.clone()))
        {
            let note = Note::BackupRefused { backup: backup.clone(), why };
            record_note(&self.host.telemetry, &note);
        }
        self.tell(Event::LinkRefused { backup, refusal });
    }

    pub(super) fn on_unreachable(&mut self, backup: &NodeId, why: String) {
        if self.peers.address(backup).is_some()
            && self.troubles.begin(backup, Trouble::Unreachable(why.clone()))
        {
            let (events, nothing) = (&self.host.telemetry.events, serde_json::Value::Null);
            events.record(Severity::Warning, EventKind::PeerUnreachable, why, nothing);
        }
    }

    /// Whether `note` says again what was told when it began.
    pub(super) fn is_told(&mut self, note: &Note) -> bool {
        match note {
            Note::BackupRefused { backup, why } => {
                self.troubles.of(backup) == Some(&Trouble::Refused(why.clone()))
            }
            note => self.arbiter.is_told(note),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_news_when_its_reason_changes() {
        let mut troubles = Troubles::default();
        let (b, c): (NodeId, NodeId) = ("node-b".parse().unwrap(), "node-c".parse().unwrap());
        assert_eq!(troubles.words(), None);
        assert!(troubles.begin(&b, Trouble::Refused("vcpus differ".to_owned())));
        assert!(!troubles.begin(&b, Trouble::Refused("vcpus differ".to_owned())));
        assert!(troubles.begin(&c, Trouble::Unreachable("node-c is not there".to_owned())));
        let words = "node-b refuses: vcpus differ; node-c is not there";
        assert_eq!(troubles.words().as_deref(), Some(words));
        assert!(troubles.begin(&b, Trouble::Refused("it is taking over".to_owned())));
        troubles.end(&b);
        assert_eq!(troubles.of(&b), None);
        assert!(troubles.begin(&b, Trouble::Refused("it is taking over".to_owned())));
    }
}
