//! What a soak did, and what survived it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::rehearsal::ProbeReport;

/// What came of a soak.
#[derive(Debug, Clone, Serialize)]
pub struct SoakReport {
    /// Draws the same faults again.
    pub seed: u64,
    /// How many backups the guest had.
    pub backups: u8,
    /// How long it ran, in ms.
    pub elapsed_ms: u64,
    /// Rounds that ended protected.
    pub rounds: u64,
    /// Faults by victim and kind.
    pub faults: BTreeMap<String, u64>,
    /// How often another host ran the guest after a round than before.
    pub moves: u64,
    /// Changes of the host that frames of the guest came from, as the switch
    /// saw them.
    pub voice_changes: u64,
    /// Rounds in which that changed more often than the register did: two spoke.
    pub double_voices: u64,
    /// Comparisons of the memory of all hosts.
    pub verified: u64,
    /// Comparisons that found a difference.
    pub different: u64,
    /// The term at the end.
    pub term: u64,
    /// What the clients saw.
    pub clients: Option<ProbeReport>,
    /// Why it ended before its time.
    pub failure: Option<String>,
}

impl SoakReport {
    /// Whether the guest kept its word, and protection came back every time.
    #[must_use]
    pub fn sound(&self) -> bool {
        self.failure.is_none()
            && self.rounds > 0
            && self.double_voices == 0
            && self.different == 0
            && self.clients.as_ref().is_some_and(ProbeReport::sound)
    }
}

/// The report, as a person likes to read it.
#[must_use]
pub fn render(report: &SoakReport) -> String {
    let word = if report.sound() { "Nothing was lost." } else { "THIS MUST NOT BE." };
    let mut text = format!("\n{word}\n\n");
    let mut row = |name: &str, value: String| text.push_str(&format!("  {name:<28} {value}\n"));
    let seconds = report.elapsed_ms as f64 / 1000.0;
    row("seed", report.seed.to_string());
    row("backups", report.backups.to_string());
    row("rounds", format!("{} in {seconds:.0} s", report.rounds));
    for (name, count) in &report.faults {
        row(name, count.to_string());
    }
    row("moves of the guest", format!("{} (term {})", report.moves, report.term));
    row("changes of voice", report.voice_changes.to_string());
    row("double voices", report.double_voices.to_string());
    row("memory compared", format!("{} times, {} different", report.verified, report.different));
    if let Some(clients) = &report.clients {
        row("answers", format!("{} ({} twice)", clients.answers, clients.duplicates));
        row("lost answers", clients.lost.to_string());
        row("went back, corrupt", format!("{}, {}", clients.went_back, clients.corrupt));
        row("longest without an answer", format!("{:.0} ms", clients.longest_gap.ms));
        for complaint in &clients.complaints {
            row("complaint", complaint.clone());
        }
    }
    if let Some(failure) = &report.failure {
        row("ended early", failure.clone());
    }
    text
}
