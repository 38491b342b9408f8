//! What the guest was at every pause, and what backups have of it.

use std::{collections::VecDeque, time::Duration};

use arbiter::{ImageId, NodeId};
use checkpoint::{Sections, image::BrokenImage};

use super::{Rule, Witness};
use crate::simulation::{
    guest::{Guest, Memory},
    happening::ProcessId,
};

/// Captures that are kept: more than a backup can have staged when it stands
/// still.
const CAPTURES_MAX: usize = 1_000;

/// All of a guest at a pause.
#[derive(Debug, Clone)]
struct Capture {
    source: usize,
    epoch: u64,
    memory: Memory,
    sections: Sections,
    steps: u64,
}

/// What a backup was made to keep.
#[derive(Debug)]
pub(super) struct Replica {
    number: u64,
    process: ProcessId,
    pub(super) node: NodeId,
    /// What the primary called it that seeded it, or handed over.
    pub(super) image: ImageId,
    /// Of which incarnation.
    pub(super) source: usize,
    /// The guest's steps at the last epoch that it was given to keep.
    pub(super) steps: u64,
    /// What it keeps and what its image was not found to be yet; never empty
    /// before that.
    ahead: VecDeque<Capture>,
    /// What its image was found to be last.
    found: Option<Capture>,
}

impl Replica {
    /// The last epoch that it was given to keep.
    fn last(&self) -> Option<&Capture> {
        self.ahead.back().or(self.found.as_ref())
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Images {
    captures: VecDeque<Capture>,
    replicas: Vec<Replica>,
    /// How many replicas there have been.
    count: u64,
    /// Images of which an epoch was kept: those that may be admitted.
    kept: Vec<(NodeId, ImageId)>,
}

impl Images {
    pub(super) fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter()
    }

    fn capture(&self, source: usize, epoch: u64) -> Option<&Capture> {
        self.captures.iter().rev().find(|c| c.source == source && c.epoch == epoch)
    }

    fn replica(&mut self, process: ProcessId) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|replica| replica.process == process)
    }
}

impl Witness {
    /// The guest is paused, and this is all of it.
    pub(in crate::simulation) fn captures(
        &mut self,
        process: ProcessId,
        epoch: u64,
        guest: &Guest,
        sections: &Sections,
    ) {
        let Some(source) = self.voices.of(process) else {
            return self.object(Rule::OneVoice, || "a guest that nobody started".to_owned());
        };
        self.images.captures.push_back(Capture {
            source,
            epoch,
            memory: guest.memory.clone(),
            sections: sections.clone(),
            steps: guest.steps(),
        });
        if self.images.captures.len() > CAPTURES_MAX {
            self.images.captures.pop_front();
        }
    }

    /// A backup is given an epoch to keep: from now on a promotion includes it.
    /// Returns the number of what it keeps, which a new seed changes.
    pub(in crate::simulation) fn keeps(
        &mut self,
        process: ProcessId,
        node: &NodeId,
        primary: ProcessId,
        epoch: u64,
        image: Option<ImageId>,
    ) -> u64 {
        let source = self.voices.of(primary);
        let Some((source, capture)) = source.and_then(|source| {
            self.images.capture(source, epoch).cloned().map(|capture| (source, capture))
        }) else {
            self.object(Rule::Order, || format!("{node} keeps {epoch}, which never was"));
            return 0;
        };
        let (images, voices) = (&mut self.images, &self.voices);
        let number = match images.replica(process) {
            Some(replica) => {
                // By a handover: the guest goes on elsewhere from what is kept here.
                let last = replica.last().map_or(0, |capture| capture.steps);
                if voices.begins_with(source, replica.source, last) {
                    replica.source = source;
                }
                let number = replica.number;
                let of = replica.source;
                let before = replica.last().map_or(0, |capture| capture.epoch);
                replica.steps = capture.steps;
                replica.ahead.push_back(capture);
                self.require(of == source && epoch == before + 1, Rule::Order, || {
                    format!("{node} keeps epoch {epoch} of guest {source} after {before} of {of}")
                });
                number
            }
            None => {
                let Some(image) = image else {
                    self.object(Rule::Order, || format!("{node} keeps {epoch} of no seed"));
                    return 0;
                };
                let node = node.clone();
                self.images.kept.push((node.clone(), image));
                self.images.count += 1;
                let number = self.images.count;
                let (steps, ahead) = (capture.steps, [capture].into());
                let found = None;
                let replica = Replica { number, process, node, image, source, steps, ahead, found };
                self.images.replicas.push(replica);
                number
            }
        };
        self.check_members();
        number
    }

    /// A primary that hands over keeps the guest as it stands, from before the
    /// arbiter is asked.
    pub(in crate::simulation) fn stays(
        &mut self,
        process: ProcessId,
        node: &NodeId,
        epoch: u64,
        image: ImageId,
    ) {
        self.gives_up(process);
        self.keeps(process, node, process, epoch, Some(image));
    }

    /// A process goes on as another, with what it kept; returns its number.
    pub(in crate::simulation) fn becomes(&mut self, before: ProcessId, after: ProcessId) -> u64 {
        match self.images.replica(before) {
            Some(replica) => {
                replica.process = after;
                replica.number
            }
            None => {
                self.object(Rule::Order, || format!("host {} kept nothing", before.host));
                0
            }
        }
    }

    /// A backup gives up what it kept, or dies with it.
    pub(in crate::simulation) fn gives_up(&mut self, process: ProcessId) {
        self.images.replicas.retain(|replica| replica.process != process);
    }

    /// An image is admitted: something of this guest must have been kept in it,
    /// though its process may have died since.
    pub(super) fn admitted(&mut self, node: &NodeId, image: ImageId) {
        let kept = self.images.kept.iter().any(|(n, i)| (n, *i) == (node, image));
        self.require(kept, Rule::OutputRule, || {
            format!("{node} may take over and has never committed an epoch of this guest")
        });
    }

    /// An image is between two epochs: `written` are the places that were
    /// written since it was looked at last, a bit each. What was given up
    /// meanwhile counts no more.
    pub(in crate::simulation) fn image(
        &mut self,
        number: u64,
        epoch: u64,
        memory: &Memory,
        written: u64,
        sections: &Sections,
    ) {
        let Some(place) = self.images.replicas.iter().position(|r| r.number == number) else {
            return;
        };
        let Replica { process, ahead, found, .. } = &mut self.images.replicas[place];
        let process = *process;
        let Some(capture) = ahead.pop_front().filter(|capture| capture.epoch == epoch) else {
            return self.object(Rule::Order, || format!("an image is {epoch} out of turn"));
        };
        let differs = |place: &usize| {
            let untouched = written >> place & 1 == 0
                && found.as_ref().is_some_and(|found| found.memory.shares(&capture.memory, *place));
            !untouched && memory.page(*place) != capture.memory.page(*place)
        };
        let different: Vec<usize> = (0..memory.len()).filter(differs).collect();
        let state_differs = *sections != capture.sections;
        self.judge(process, epoch, memory, &different, state_differs);
        self.images.replicas[place].found = Some(capture);
    }

    /// Somebody finds that an image is not what it is taken for.
    pub(in crate::simulation) fn broken_image(&mut self, process: ProcessId, broken: &BrokenImage) {
        self.object(Rule::NothingForgotten, || format!("host {}: {broken}", process.host));
    }

    /// A backup takes over with this memory and state.
    pub(in crate::simulation) fn takes_over(
        &mut self,
        now: Duration,
        process: ProcessId,
        node: &NodeId,
        guest: &Guest,
        sections: &Sections,
    ) {
        let Some(replica) = self.images.replica(process) else {
            return self.object(Rule::OneVoice, || format!("{node} takes over with nothing"));
        };
        let source = replica.source;
        let capture = replica.last().expect("what is kept is known").clone();
        let epoch = capture.epoch;
        let memory = &guest.memory;
        let differs = |place: &usize| memory.page(*place) != capture.memory.page(*place);
        let different: Vec<usize> = (0..memory.len()).filter(differs).collect();
        self.judge(process, epoch, memory, &different, *sections != capture.sections);
        self.gives_up(process);
        self.goes_on(now, process, node, source, capture.steps);
    }

    fn judge(
        &mut self,
        process: ProcessId,
        epoch: u64,
        memory: &Memory,
        different: &[usize],
        state_differs: bool,
    ) {
        if different.is_empty() && !state_differs {
            return;
        }
        let equals = |capture: &&Capture| {
            (0..memory.len()).all(|place| memory.page(place) == capture.memory.page(place))
        };
        let host = process.host;
        match self.images.captures.iter().rev().find(equals).map(|capture| capture.epoch) {
            Some(other) if !different.is_empty() => self.object(Rule::AllOrNothing, || {
                format!("host {host}: the image is to be epoch {epoch} and is epoch {other}")
            }),
            _ if different.is_empty() => self.object(Rule::AllOrNothing, || {
                format!("host {host}: the saved state is not that of epoch {epoch}")
            }),
            _ => self.object(Rule::NothingForgotten, || {
                format!("host {host}: at epoch {epoch} pages {different:?} are not the guest's")
            }),
        }
    }
}
