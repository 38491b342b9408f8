//! A session between a primary and a backup: streams in both directions.
//!
//! ```text
//!   primary ── control ──▶ backup     each stream keeps its order
//!           ◀── control ──            streams overtake each other
//!           ── data 0.. ──▶           a window bounds what is on its way
//! ```

use std::{collections::VecDeque, rc::Rc, time::Duration};

use arbiter::{ImageId, Term};
use checkpoint::chunk::Chunk;

use crate::simulation::happening::ProcessId;

/// Which session; later ones have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::simulation) struct SessionId(u32);

impl SessionId {
    pub(super) fn new(index: usize) -> Self {
        Self(index as u32)
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }

    pub(in crate::simulation) fn number(self) -> u64 {
        u64::from(self.0)
    }
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::simulation) enum Side {
    Primary,
    Backup,
}

impl Side {
    pub(in crate::simulation) fn other(self) -> Self {
        match self {
            Self::Primary => Self::Backup,
            Self::Backup => Self::Primary,
        }
    }
}

/// One of the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::simulation) enum Pipe {
    /// Control messages to the backup.
    Down,
    /// Control messages to the primary.
    Up,
    /// Chunks to the backup.
    Data(u8),
}

impl Pipe {
    /// Whose end it leaves from.
    pub(in crate::simulation) fn from(self) -> Side {
        match self {
            Self::Down | Self::Data(_) => Side::Primary,
            Self::Up => Side::Backup,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Down => 0,
            Self::Up => 1,
            Self::Data(stream) => 2 + usize::from(stream),
        }
    }
}

/// A frame on its way.
#[derive(Debug)]
pub(in crate::simulation) struct Parcel {
    pub(in crate::simulation) at: Duration,
    pub(in crate::simulation) octets: Vec<u8>,
}

#[derive(Debug, Default)]
struct Stream {
    parcels: VecDeque<Parcel>,
    /// The arrival of the first one is planned.
    planned: bool,
}

/// See the module's head.
#[derive(Debug)]
pub(in crate::simulation) struct Session {
    primary: ProcessId,
    backup_host: u8,
    /// The process that took the session.
    backup: Option<ProcessId>,
    primary_open: bool,
    backup_open: bool,
    /// Nothing gets through any more.
    broken: bool,
    streams: Vec<Stream>,
    /// Frames of a lower term are not read by the backup.
    pub(in crate::simulation) floor: Term,
    /// The image whose seed was last begun in it.
    pub(in crate::simulation) seeds: Option<ImageId>,
    /// Data frames on their way, or waiting for a decoder.
    pub(in crate::simulation) in_window: usize,
    /// Chunks that wait for the window.
    pub(in crate::simulation) queue: VecDeque<Rc<Chunk>>,
    next_stream: u8,
}

impl Session {
    pub(super) fn new(primary: ProcessId, backup_host: u8, data_streams: usize) -> Self {
        let streams = (0..2 + data_streams).map(|_| Stream::default()).collect();
        Self {
            primary,
            backup_host,
            backup: None,
            primary_open: true,
            backup_open: false,
            broken: false,
            streams,
            floor: Term::ZERO,
            seeds: None,
            in_window: 0,
            queue: VecDeque::new(),
            next_stream: 0,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.primary_open || self.backup_open
    }

    pub(in crate::simulation) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(in crate::simulation) fn primary(&self) -> ProcessId {
        self.primary
    }

    /// Nobody has taken it yet, and it is still wanted.
    pub(in crate::simulation) fn is_new(&self) -> bool {
        self.backup.is_none() && self.primary_open && !self.broken
    }

    /// The machine at an end.
    pub(in crate::simulation) fn host(&self, side: Side) -> u8 {
        match side {
            Side::Primary => self.primary.host,
            Side::Backup => self.backup_host,
        }
    }

    /// The process at an end, if its end is open.
    pub(in crate::simulation) fn process(&self, side: Side) -> Option<ProcessId> {
        match side {
            Side::Primary => self.primary_open.then_some(self.primary),
            Side::Backup => self.backup.filter(|_| self.backup_open),
        }
    }

    /// A backup's process takes the session.
    pub(in crate::simulation) fn take(&mut self, backup: ProcessId, floor: Term) {
        self.backup = Some(backup);
        self.backup_open = true;
        self.floor = floor;
    }

    /// Nobody at that end listens any more; `false` if so it was.
    pub(in crate::simulation) fn shut(&mut self, side: Side) -> bool {
        if side == Side::Primary {
            self.queue.clear();
        }
        let open = match side {
            Side::Primary => &mut self.primary_open,
            Side::Backup => &mut self.backup_open,
        };
        std::mem::replace(open, false)
    }

    /// Nothing gets through any more.
    pub(in crate::simulation) fn break_off(&mut self) {
        self.broken = true;
        for stream in &mut self.streams {
            stream.parcels.clear();
        }
    }

    /// Of what `side` has sent, what arrives by then is still read.
    pub(in crate::simulation) fn keep_until(&mut self, side: Side, by: Duration) {
        for index in 0..self.streams.len() {
            let from = if index == Pipe::Up.index() { Side::Backup } else { Side::Primary };
            if from == side {
                self.streams[index].parcels.retain(|parcel| parcel.at <= by);
            }
        }
    }

    /// Puts a frame on its way, behind those before it. Returns when its
    /// arrival is to be planned, if it is.
    pub(in crate::simulation) fn push(
        &mut self,
        pipe: Pipe,
        mut parcel: Parcel,
    ) -> Option<Duration> {
        let stream = &mut self.streams[pipe.index()];
        if let Some(last) = stream.parcels.back() {
            parcel.at = parcel.at.max(last.at);
        }
        let at = parcel.at;
        stream.parcels.push_back(parcel);
        (!std::mem::replace(&mut stream.planned, true)).then_some(at)
    }

    /// Takes the frame that has come, and when the next one's arrival is to be
    /// planned.
    pub(in crate::simulation) fn pop(&mut self, pipe: Pipe) -> (Option<Parcel>, Option<Duration>) {
        let stream = &mut self.streams[pipe.index()];
        let parcel = stream.parcels.pop_front();
        let next = stream.parcels.front().map(|parcel| parcel.at);
        stream.planned = next.is_some();
        (parcel, next)
    }

    /// The data stream of the next chunk.
    pub(in crate::simulation) fn next_data(&mut self) -> Pipe {
        self.next_stream = (self.next_stream + 1) % (self.streams.len() - 2) as u8;
        Pipe::Data(self.next_stream)
    }
}
