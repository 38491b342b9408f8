//! Who runs the guest, and what was said.
//!
//! Every start of a guest is an *incarnation*: a fresh boot, or one that goes on
//! from what a backup kept of another. The steps of the guest go on with it, so
//! "this is known" is a comparison of numbers along one line of descent.

use std::time::Duration;

use arbiter::NodeId;
use checkpoint::output::{Channel, Output};

use super::{Rule, Witness};
use crate::simulation::{guest::steps_of, happening::ProcessId};

#[derive(Debug)]
struct Incarnation {
    process: ProcessId,
    node: NodeId,
    /// It went on from this one, …
    parent: Option<usize>,
    /// … from this step of it.
    from: u64,
    /// The step that another one went on from, and since when that one was to.
    cut_off: Option<(u64, Duration)>,
    /// The last step told on the console and on the network.
    said: [u64; 2],
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Voices {
    incarnations: Vec<Incarnation>,
    /// The one that goes on.
    last: Option<usize>,
    /// The last step that anything told of, on the line that goes on.
    told: u64,
}

impl Voices {
    pub(super) fn told(&self) -> u64 {
        self.told
    }

    /// The incarnation that a process runs, or ran last.
    pub(super) fn of(&self, process: ProcessId) -> Option<usize> {
        self.incarnations.iter().rposition(|incarnation| incarnation.process == process)
    }

    /// Whether whoever has step `steps` of incarnation `source` knows of all up
    /// to `told`, and nothing that never was.
    pub(super) fn knows(&self, source: usize, steps: u64, told: u64) -> bool {
        let last = self.last.expect("somebody was the source");
        self.begins_with(last, source, steps) && steps >= told
    }

    /// Whether step `steps` of incarnation `source` is where incarnation `at`
    /// began, or a step of its own.
    pub(super) fn begins_with(&self, mut at: usize, source: usize, steps: u64) -> bool {
        while at > source {
            let Incarnation { parent, from, .. } = &self.incarnations[at];
            match parent {
                Some(parent) if *from == steps => at = *parent,
                Some(_) | None => return false,
            }
        }
        at == source
    }

    /// Whether the last incarnation descends from this one.
    fn leads_on(&self, index: usize) -> bool {
        let mut line = self.last;
        while let Some(at) = line.filter(|at| *at > index) {
            line = self.incarnations[at].parent;
        }
        line == Some(index)
    }

    fn cut_off(&mut self, steps: u64, since: Duration) {
        if let Some(last) = self.last {
            self.incarnations[last].cut_off = Some((steps, since));
        }
    }
}

impl Witness {
    /// A guest boots.
    pub(in crate::simulation) fn boots(
        &mut self,
        now: Duration,
        process: ProcessId,
        node: &NodeId,
    ) {
        self.use_grant(node);
        // Nothing that was before counts any more; nobody may speak of it.
        let since = self.register.grant().map_or(now, |grant| grant.at);
        self.voices.cut_off(0, since);
        self.voices.told = 0;
        self.begin(process, node, None, 0);
    }

    /// A guest goes on from step `steps` of another.
    pub(super) fn goes_on(
        &mut self,
        now: Duration,
        process: ProcessId,
        node: &NodeId,
        source: usize,
        steps: u64,
    ) {
        if self.use_late_grant(node) {
            // Handed to it, and taken on by another who was in sync before it
            // had begun: it may say nothing.
            let number = self.voices.incarnations.len();
            let line = self.voices.last;
            self.begin(process, node, Some(source), steps);
            self.voices.incarnations[number].cut_off = Some((steps, now));
            self.voices.last = line;
            return;
        }
        self.use_grant(node);
        let told = self.voices.told;
        let knows = self.voices.knows(source, steps, told);
        self.require(knows, Rule::OutputRule, || {
            format!("{node} goes on from step {steps}, but step {told} was told")
        });
        let since = self.register.grant().map_or(now, |grant| grant.at);
        self.voices.cut_off(steps, since);
        self.begin(process, node, Some(source), steps);
    }

    fn begin(&mut self, process: ProcessId, node: &NodeId, parent: Option<usize>, from: u64) {
        let node = node.clone();
        let said = [0; 2];
        let incarnation = Incarnation { process, node, parent, from, cut_off: None, said };
        self.voices.last = Some(self.voices.incarnations.len());
        self.voices.incarnations.push(incarnation);
    }

    /// Something leaves a host.
    pub(in crate::simulation) fn hears(
        &mut self,
        now: Duration,
        process: ProcessId,
        output: &Output,
    ) {
        let steps = steps_of(output);
        let Some(index) = self.voices.of(process) else {
            return self.object(Rule::OneVoice, || "somebody without a guest speaks".to_owned());
        };
        self.check_right(now, index, steps);
        let incarnation = &mut self.voices.incarnations[index];
        let said = &mut incarnation.said[usize::from(output.channel == Channel::Console)];
        let ordered = *said <= steps;
        let before = std::mem::replace(said, steps);
        let node = incarnation.node.clone();
        self.require(ordered, Rule::Order, || {
            format!("{node} tells of step {steps} after step {before}")
        });
        self.voices.told = self.voices.told.max(steps);
        self.check_members();
    }

    /// Whether an incarnation may tell of a step now.
    fn check_right(&mut self, now: Duration, index: usize, steps: u64) {
        let incarnation = &self.voices.incarnations[index];
        let node = incarnation.node.clone();
        // Another was granted the right, and perhaps has begun.
        let since = match (incarnation.cut_off, self.register.grant()) {
            (Some((known, since)), _) => {
                if steps > known || !self.voices.leads_on(index) {
                    return self.object(Rule::OneVoice, || {
                        format!("{node} tells of step {steps}; the guest went on from {known}")
                    });
                }
                Some(since)
            }
            (None, Some(grant)) => (!grant.used).then_some(grant.at),
            (None, None) => None,
        };
        let grace = self.grace;
        if let Some(late) = since.map(|since| now - since).filter(|late| *late > grace) {
            self.object(Rule::OneVoice, || {
                format!("{node} speaks {} ms after it lost the right to", late.as_millis())
            });
        }
    }
}
