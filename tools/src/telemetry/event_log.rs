//! The last events of a process, numbered, for those who ask or wait.
//!
//! Invariant: numbers rise by one from 1; at most [`EVENTS_KEPT_MAX`] are kept,
//! always the newest.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use arbiter::NodeId;
use tokio::sync::watch;

use crate::control::{EventKind, EventPage, EventRecord, Severity};

/// Events that are kept.
pub const EVENTS_KEPT_MAX: usize = 4096;

/// A bounded log of [`EventRecord`]s.
#[derive(Debug)]
pub struct EventLog {
    kept: Mutex<VecDeque<EventRecord>>,
    last: watch::Sender<u64>,
    /// How often peers have caused what they can cause as often as they like.
    repeats: Mutex<BTreeMap<(EventKind, Option<NodeId>), u64>>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { kept: Mutex::default(), last: watch::Sender::new(0), repeats: Mutex::default() }
    }
}

impl EventLog {
    /// Notes that something happened. Callable from any thread; does not block
    /// beyond a short lock. `fields` is a JSON object (see `serde_json::json!`),
    /// or null for none.
    pub fn record(
        &self,
        severity: Severity,
        kind: EventKind,
        text: impl Into<String>,
        fields: serde_json::Value,
    ) {
        let text = text.into();
        let fields: BTreeMap<_, _> = match fields {
            serde_json::Value::Object(map) => map.into_iter().collect(),
            serde_json::Value::Null => BTreeMap::new(),
            other => BTreeMap::from([("value".to_owned(), other)]),
        };
        trace(severity, kind, &text, &fields);
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let unix_ms = u64::try_from(unix_ms).unwrap_or(u64::MAX);
        let monotonic_us = monotonic_us();
        let mut kept = self.kept.lock().expect("no holder panics");
        let sequence = *self.last.borrow() + 1;
        if kept.len() == EVENTS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(EventRecord {
            sequence,
            unix_ms,
            monotonic_us,
            severity,
            kind,
            text,
            fields,
        });
        // Under the lock, so that numbers rise for whoever is woken.
        self.last.send_replace(sequence);
    }

    /// Counts one more event of `kind` that `peer` caused. Whether it is to be
    /// recorded: that is the first, second, fourth, eighth, … of them.
    pub fn is_due(&self, kind: EventKind, peer: Option<&NodeId>) -> bool {
        let mut repeats = self.repeats.lock().expect("no holder panics");
        let count = repeats.entry((kind, peer.cloned())).or_default();
        *count += 1;
        count.is_power_of_two()
    }

    /// The kept events with numbers above `after`.
    #[must_use]
    pub fn after(&self, after: u64) -> EventPage {
        let kept = self.kept.lock().expect("no holder panics");
        let oldest = kept.front().map_or(1, |event| event.sequence);
        let events: Vec<_> = kept.iter().filter(|event| event.sequence > after).cloned().collect();
        EventPage {
            next_after: events.last().map_or(after, |event| event.sequence),
            forgotten: oldest.saturating_sub(after.saturating_add(1)),
            events,
        }
    }

    /// Resolves when there is an event with a number above `after`.
    pub async fn wait_beyond(&self, after: u64) {
        // Fails only when the sender is gone, and we hold it.
        let _ = self.last.subscribe().wait_for(|last| *last > after).await;
    }
}

/// `CLOCK_MONOTONIC` in microseconds, which all processes of a host share.
#[must_use]
pub fn monotonic_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    // The kernel always has this clock.
    let now = now.map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

fn trace(
    severity: Severity,
    kind: EventKind,
    text: &str,
    fields: &BTreeMap<String, serde_json::Value>,
) {
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let fields = fields.join(" ");
    match severity {
        Severity::Info => tracing::info!(target: "romulus::event", %kind, %fields, "{text}"),
        Severity::Warning => tracing::warn!(target: "romulus::event", %kind, %fields, "{text}"),
        Severity::Error => tracing::error!(target: "romulus::event", %kind, %fields, "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(log: &EventLog, text: &str) {
        log.record(Severity::Info, EventKind::Promoted, text, serde_json::json!({ "term": 2 }));
    }

    #[test]
    fn the_newest_are_kept_and_the_rest_counted() {
        let log = EventLog::default();
        for number in 0..EVENTS_KEPT_MAX + 3 {
            record(&log, &number.to_string());
        }
        let page = log.after(1);
        assert_eq!(page.events.len(), EVENTS_KEPT_MAX);
        assert_eq!(page.forgotten, 2);
        assert_eq!(page.next_after, EVENTS_KEPT_MAX as u64 + 3);
        assert!(page.events.windows(2).all(|pair| pair[0].sequence + 1 == pair[1].sequence));
        assert_eq!(log.after(page.next_after).events, []);
    }

    #[test]
    fn what_a_peer_repeats_is_due_ever_more_rarely() {
        let log = EventLog::default();
        let [a, b] = ["a", "b"].map(|name| name.parse::<NodeId>().unwrap());
        let due = |peer: &NodeId| log.is_due(EventKind::FrameStale, Some(peer));
        let times: Vec<_> = (1..=100).filter(|_| due(&a)).collect();
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 64]);
        assert!(due(&b) && log.is_due(EventKind::ChunkCorrupt, Some(&a)));
    }

    #[tokio::test]
    async fn a_waiter_is_woken() {
        let log = std::sync::Arc::new(EventLog::default());
        let waiting = {
            let log = log.clone();
            tokio::spawn(async move { log.wait_beyond(1).await })
        };
        record(&log, "one");
        record(&log, "two");
        waiting.await.unwrap();
        assert_eq!(log.after(1).events[0].fields["term"], 2);
    }
}
