//! Looks at the arbiter now and then: an operator must hear of one that is lost,
//! or that has lost this VM's register, before a failover needs it. What the
//! register says is the machines' business; here its term is compared with the
//! one that this node knows, because terms never fall.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arbiter::Term;
use tokio::task::AbortHandle;
use transport::AskError;

use super::{Host, with_causes};
use crate::control::{EventKind, Severity};

/// Between two looks. A look has the client's own, shorter time limit.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a look at the arbiter found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// It has the register that this node knows, or a newer one.
    Sound,
    /// It did not tell, for this reason.
    Silent(String),
    /// Its register is older than the one that this node knows, or gone: in words.
    Lost(String),
}

impl Sight {
    /// What the arbiter's `answer` shows to a node that knew of term `known`
    /// before it asked. What it was told since then may be newer.
    fn of(answer: Result<Option<Term>, AskError>, known: Term) -> Self {
        match answer {
            Ok(held) if held.unwrap_or(Term::ZERO) >= known => Self::Sound,
            Ok(held) => {
                let held = held.map_or("none".to_owned(), |term| format!("term {term}"));
                Self::Lost(format!(
                    "the arbiter has lost this VM's register (it knows {held}; here it is term {known}): no failover is possible"
                ))
            }
            Err(error) => Self::Silent(with_causes(&error)),
        }
    }

    /// What operators hear when this comes after `before`.
    fn news(&self, before: &Self) -> Option<(Severity, EventKind, String)> {
        match (before, self) {
            (Self::Sound, Self::Sound) | (Self::Silent(_), Self::Silent(_)) => None,
            (Self::Silent(_), Self::Sound) => {
                let text = "the arbiter answers again".to_owned();
                Some((Severity::Info, EventKind::ArbiterBack, text))
            }
            (Self::Lost(_), Self::Sound) => {
                let text = "the arbiter has this VM's register again".to_owned();
                Some((Severity::Info, EventKind::ArbiterBack, text))
            }
            (Self::Sound | Self::Lost(_), Self::Silent(why)) => {
                let text = format!("a failover would wait for the arbiter: {why}");
                Some((Severity::Warning, EventKind::ArbiterLost, text))
            }
            (Self::Lost(before), Self::Lost(why)) if before == why => None,
            (_, Self::Lost(why)) => Some((Severity::Error, EventKind::ArbiterLost, why.clone())),
        }
    }
}

/// A task that looks at the arbiter until this is dropped.
#[derive(Debug)]
pub struct ArbiterWatch {
    task: AbortHandle,
    /// The highest term that this node knows.
    known: Arc<AtomicU64>,
}

impl ArbiterWatch {
    /// Calls `tell` after every look with what it found, and records when that
    /// changes. This node knows of term `known`.
    pub fn start(host: &Host, known: Term, tell: impl Fn(Sight) + Send + 'static) -> Self {
        let (client, vm) = (host.arbiter.clone(), host.config.vm.name.clone());
        let events = host.telemetry.events.clone();
        let shared = Arc::new(AtomicU64::new(known.get()));
        let known = shared.clone();
        let task = host.runtime.spawn(async move {
            let mut before = Sight::Sound;
            loop {
                // Read first: the register may change while the answer is on its way.
                let known = Term::new(shared.load(Ordering::Acquire));
                let answer = client.load(&vm).await;
                let term = answer.map(|record| record.map(|record| record.register.term));
                let now = Sight::of(term, known);
                if let Some((severity, kind, text)) = now.news(&before) {
                    events.record(severity, kind, text, serde_json::Value::Null);
                }
                before = now.clone();
                tell(now);
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self { task: task.abort_handle(), known }
    }

    /// This node knows of `term`: the arbiter has set it.
    pub fn knows(&self, term: Term) {
        self.known.store(term.get(), Ordering::Release);
    }
}

impl Drop for ArbiterWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(held: Option<u64>, known: u64) -> Sight {
        Sight::of(Ok(held.map(Term::new)), Term::new(known))
    }

    fn silent() -> Sight {
        Sight::of(Err(AskError::Denied { words: "not you".to_owned() }), Term::new(7))
    }

    #[test]
    fn a_register_that_is_gone_or_older_is_lost() {
        let lost = |held: &str| {
            Sight::Lost(format!(
                "the arbiter has lost this VM's register (it knows {held}; here it is term 7): no failover is possible"
            ))
        };
        assert_eq!(sight(None, 7), lost("none"));
        assert_eq!(sight(Some(5), 7), lost("term 5"));
        assert_eq!(sight(Some(7), 7), Sight::Sound);
    }

    #[test]
    fn an_admission_that_this_node_has_not_heard_of_is_no_loss() {
        assert_eq!(sight(Some(8), 7), Sight::Sound);
    }

    #[test]
    fn who_knows_of_no_register_misses_none() {
        assert_eq!(sight(None, 0), Sight::Sound);
    }

    #[test]
    fn news_are_told_once() {
        let (sound, lost) = (Sight::Sound, sight(None, 7));
        let kind = |now: &Sight, before: &Sight| now.news(before).map(|(how, kind, _)| (how, kind));
        let error = Some((Severity::Error, EventKind::ArbiterLost));
        let warning = Some((Severity::Warning, EventKind::ArbiterLost));
        let back = Some((Severity::Info, EventKind::ArbiterBack));
        assert_eq!(kind(&lost, &sound), error);
        assert_eq!(kind(&lost, &lost), None);
        assert_eq!(kind(&silent(), &sound), warning);
        assert_eq!(kind(&silent(), &silent()), None);
        assert_eq!(kind(&lost, &silent()), error);
        assert_eq!(kind(&sound, &lost), back);
        assert_eq!(kind(&sound, &silent()), back);
        assert_eq!(kind(&sound, &sound), None);
    }
}
