//! Answers for people: aligned, and coloured only on a terminal.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal},
    time::Duration,
};

use serde::Serialize;

use crate::{
    config::JailMode,
    control::{
        ArbiterStatus, EtcdMember, EtcdMemberState, EventRecord, Jail, PeerStatus, Percentiles,
        Protection, Readiness, RegisterStatus, RegisterStore, Severity, Status, VerifyReport,
    },
};

/// Width of the names on the left.
const LABEL_WIDTH: usize = 12;

#[derive(Debug, Clone, Copy)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
}

/// `text` in `colour`, if stdout is a terminal that wants it (`NO_COLOR`).
pub(super) fn paint(colour: Colour, text: &str) -> String {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if refused || !io::stdout().is_terminal() {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

pub(super) fn status(status: &Status) -> String {
    let mut text = String::new();
    let headline = match &status.protection {
        Protection::Protected => paint(Colour::Green, "protected"),
        Protection::Unprotected { reason } => {
            format!("{}: {reason}", paint(Colour::Red, "not protected"))
        }
    };
    let _ = writeln!(text, "{}: {headline}", status.vm);
    let mut row = |label: &str, value: String| {
        let _ = writeln!(text, "  {label:LABEL_WIDTH$} {value}");
    };
    row("node", format!("{}, {}", status.node, word(&status.role)));
    row("guest", word(&status.guest));
    row("term", status.term.to_string());
    row(
        "epoch",
        format!("{}, committed {}, applied {}", status.epoch, status.committed, status.applied),
    );
    row("behind", format!("{} epochs, {} ms", status.behind.epochs, status.behind.ms));
    row("in sync", names(&status.in_sync));
    for peer in &status.peers {
        row("peer", self::peer(peer));
    }
    row("arbiter", word(&status.arbiter));
    row("held", bytes(status.held_bytes));
    row("pause", percentiles(&status.pause_us));
    row("commit", percentiles(&status.commit_us));
    row(
        "wire",
        format!("{} per epoch, {} epochs", bytes(status.wire_bytes_per_epoch), status.epochs),
    );
    let refused = &status.refused;
    row(
        "refused",
        format!("{} stale frames, {} corrupt chunks", refused.stale_frames, refused.corrupt_chunks),
    );
    let features = &status.features;
    row("host", format!("KVM on {}, dirty {}", features.kvm_backend, features.dirty_tracking));
    row("jail", jail(&features.jail));
    text
}

fn jail(jail: &Jail) -> String {
    let refused = jail.refused_calls;
    match jail.mode {
        JailMode::Off => "off".to_owned(),
        JailMode::Log => "log: nothing is refused, see the kernel's log".to_owned(),
        JailMode::Strict => {
            let rights = match &jail.capabilities[..] {
                [] => "no capabilities".to_owned(),
                kept => kept.join(" "),
            };
            let files = match jail.landlock {
                0 => "no landlock".to_owned(),
                version => format!("landlock {version}"),
            };
            format!("strict: {rights}, {files}, {refused} system calls refused")
        }
    }
}

pub(super) fn arbiter_status(status: &ArbiterStatus) -> String {
    let mut text = String::new();
    let headline = match &status.readiness {
        Readiness::Ready => paint(Colour::Green, "ready"),
        Readiness::NotReady { reason } => format!("{}: {reason}", paint(Colour::Red, "not ready")),
    };
    let _ = writeln!(text, "{}: {headline}", status.arbiter);
    let mut row = |label: &str, value: String| {
        let _ = writeln!(text, "  {label:LABEL_WIDTH$} {value}");
    };
    row("address", status.address.to_string());
    match &status.store {
        RegisterStore::File { path } => row("store", format!("the file {}", path.display())),
        RegisterStore::Etcd { prefix, id, members } => {
            let id = id.as_deref().unwrap_or("unknown");
            row("store", format!("etcd, prefix {prefix}, registers {id}"));
            members.iter().for_each(|member| row("member", etcd_member(member)));
        }
    }
    match &status.registers {
        Some(registers) => {
            row("registers", registers.len().to_string());
            for register in registers {
                let RegisterStatus { vm, term, primary, in_sync } = register;
                let in_sync = names(in_sync);
                row(vm.as_str(), format!("term {term}, primary {primary}, in sync {in_sync}"));
            }
        }
        None => row("registers", "unknown".to_owned()),
    }
    row("jail", jail(&status.jail));
    text
}

fn etcd_member(EtcdMember { endpoint, state }: &EtcdMember) -> String {
    match state {
        EtcdMemberState::Answers { leads, version, database_bytes, alarms } => {
            let role = if *leads { "leads" } else { "follows" };
            let mut text =
                format!("{endpoint}, {role}, etcd {version}, {}", bytes(*database_bytes));
            for alarm in alarms {
                let _ = write!(text, ", {}: {alarm}", paint(Colour::Red, "alarm"));
            }
            text
        }
        // The words name it.
        EtcdMemberState::Faulty { reason } => paint(Colour::Yellow, reason),
    }
}

fn peer(peer: &PeerStatus) -> String {
    let mut text = format!("{} at {}, {}", peer.name, peer.address, word(&peer.state));
    if let Some(seed) = peer.seed {
        let percent = (100 * seed.sent_pages).checked_div(seed.total_pages).unwrap_or(100);
        let _ = write!(text, ", {percent} % of round {}", seed.round);
    }
    if let Some(reason) = &peer.reason {
        let _ = write!(text, ": {reason}");
    }
    text
}

pub(super) fn event(event: &EventRecord) -> String {
    let colour = match event.severity {
        Severity::Info => Colour::Green,
        Severity::Warning => Colour::Yellow,
        Severity::Error => Colour::Red,
    };
    let kind = paint(colour, &format!("{:20}", event.kind.to_string()));
    let time = clock(event.unix_ms);
    let mut text = format!("{:>6}  {time}  {kind}  {}", event.sequence, event.text);
    for (name, value) in &event.fields {
        let _ = write!(text, "  {name}={value}");
    }
    text.push('\n');
    text
}

pub(super) fn verification(report: &VerifyReport) -> String {
    let verdict =
        if report.equal { paint(Colour::Green, "equal") } else { paint(Colour::Red, "different") };
    let mut text = format!("{verdict}: {} pages at epoch {}\n", report.pages, report.epoch);
    let _ = writeln!(text, "  {:LABEL_WIDTH$} {}", "primary", report.digest);
    for backup in &report.backups {
        let _ = writeln!(text, "  {:LABEL_WIDTH$} {}", backup.node.as_str(), backup.digest);
    }
    text
}

/// A word of the API for people: `in-sync` is `in sync`.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('-', " "),
        _ => "?".to_owned(),
    }
}

fn names(nodes: &[arbiter::NodeId]) -> String {
    if nodes.is_empty() {
        return "nobody".to_owned();
    }
    nodes.iter().map(arbiter::NodeId::as_str).collect::<Vec<_>>().join(", ")
}

fn percentiles(values: &Percentiles) -> String {
    let Percentiles { p50, p99, max } = *values;
    format!("p50 {}, p99 {}, max {}", micros(p50), micros(p99), micros(max))
}

fn micros(us: u64) -> String {
    if us < 1000 { format!("{us} us") } else { format!("{}.{} ms", us / 1000, us % 1000 / 100) }
}

/// Bytes in the largest unit in which they are at least 1.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size),
        None => format!("{bytes} B"),
    }
}

/// Time of day in UTC; the date is in the JSON.
fn clock(unix_ms: u64) -> String {
    let since = Duration::from_millis(unix_ms);
    let seconds = since.as_secs() % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03}Z", seconds % 60, since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::EventKind;

    #[test]
    fn quantities() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(micros(999), "999 us");
        assert_eq!(micros(1250), "1.2 ms");
        assert_eq!(clock(86_400_000 + 3_723_004), "01:02:03.004Z");
    }

    #[test]
    fn a_peer_without_a_session_says_why() {
        let mut status = crate::control::tests::sample_status();
        let refused = &mut status.peers[0];
        refused.state = crate::control::PeerState::Refused;
        refused.reason = Some("vcpus differ".to_owned());
        assert_eq!(peer(refused), "node-b at 10.1.0.2:7700, refused: vcpus differ");
    }

    #[test]
    fn an_event_is_one_line() {
        let record = EventRecord {
            sequence: 7,
            unix_ms: 1000,
            monotonic_us: 500,
            severity: Severity::Warning,
            kind: EventKind::WentSolo,
            text: "node-b is silent".to_owned(),
            fields: [("term".to_owned(), 4.into())].into(),
        };
        let expected = "     7  00:00:01.000Z  went-solo             node-b is silent  term=4\n";
        assert_eq!(event(&record), expected);
    }
}
