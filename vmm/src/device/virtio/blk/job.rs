//! A request under way, and the steps that it takes.
//!
//! Guest memory is touched by [`Job::next_step`] and [`Job::finish_step`], under
//! the device's lock; the image by [`Step::carry_out`], without it.

use std::io;

use super::{
    super::chain::{Buffers, QueueFault},
    STEP_BYTES,
    image::Image,
    request::{Extent, HEADER_BYTES, Request},
};
use crate::device::GuestMemory;

/// A request under way. It is the guest's that `buffers` are until it is done.
#[derive(Debug)]
pub(super) struct Job {
    /// When it was taken: see `Disk::era`.
    pub(super) era: u64,
    /// What is asked for; `None` if that was refused.
    pub(super) request: Option<Request>,
    pub(super) buffers: Buffers,
    /// Bytes read or written, or extents cleared.
    done: usize,
    /// A flush is to follow what changes the image.
    flush_after: bool,
}

/// Something that the host's disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The worker's bytes become those of the extent, which is no longer.
    Read(Extent),
    Write(Extent),
    Flush,
    Discard(Extent),
    Zero {
        extent: Extent,
        may_discard: bool,
    },
}

impl Job {
    pub(super) fn new(era: u64, request: Option<Request>, buffers: Buffers, durable: bool) -> Self {
        let changes = matches!(request, Some(Request::Write(_) | Request::Zero { .. }));
        Self { era, request, buffers, done: 0, flush_after: durable && changes }
    }

    /// What is to be done next, if anything is left. For a write, its bytes
    /// are copied to `bytes`.
    pub(super) fn next_step(
        &mut self,
        memory: &GuestMemory,
        bytes: &mut [u8],
    ) -> Result<Option<Step>, QueueFault> {
        let step = match &self.request {
            Some(Request::Read(whole)) => self.piece(*whole).map(Step::Read),
            Some(Request::Write(whole)) => {
                let piece = self.piece(*whole);
                if let Some(piece) = piece {
                    let bytes = &mut bytes[..piece.len as usize];
                    self.buffers.read(memory, HEADER_BYTES + self.done, bytes)?;
                }
                piece.map(Step::Write)
            }
            Some(Request::Flush) => (self.done == 0).then_some(Step::Flush),
            Some(Request::Discard(extents)) => extents.get(self.done).copied().map(Step::Discard),
            Some(Request::Zero { extents, may_discard }) => extents
                .get(self.done)
                .map(|extent| Step::Zero { extent: *extent, may_discard: *may_discard }),
            Some(Request::Identify) | None => None,
        };
        if step.is_none() && std::mem::take(&mut self.flush_after) {
            return Ok(Some(Step::Flush));
        }
        Ok(step)
    }

    /// The step that was begun is done. For a read, `bytes` are given to the guest.
    pub(super) fn finish_step(
        &mut self,
        memory: &GuestMemory,
        bytes: &[u8],
    ) -> Result<(), QueueFault> {
        match &self.request {
            Some(Request::Read(whole)) => {
                let len = self.piece(*whole).map_or(0, |piece| piece.len as usize);
                self.buffers.write(memory, self.buffers.readable + self.done, &bytes[..len])?;
                self.done += len;
            }
            Some(Request::Write(whole)) => {
                self.done += self.piece(*whole).map_or(0, |piece| piece.len as usize);
            }
            Some(_) | None => self.done += 1,
        }
        Ok(())
    }

    /// What was written to the guest when it is done.
    pub(super) fn bytes_to_guest(&self) -> usize {
        match &self.request {
            Some(Request::Read(whole)) => whole.len as usize,
            Some(_) | None => 0,
        }
    }

    pub(super) fn is_identify(&self) -> bool {
        matches!(self.request, Some(Request::Identify))
    }

    pub(super) fn is_discard(&self) -> bool {
        matches!(self.request, Some(Request::Discard(_)))
    }

    /// The next part of `whole` that fits a step.
    fn piece(&self, whole: Extent) -> Option<Extent> {
        let done = self.done as u64;
        let len = (whole.len - done).min(STEP_BYTES as u64);
        (len > 0).then(|| Extent { offset: whole.offset + done, len })
    }
}

impl Step {
    /// Whether the image is different afterwards.
    pub(super) fn changes_image(&self) -> bool {
        match self {
            Self::Read(_) | Self::Flush => false,
            Self::Write(_) | Self::Discard(_) | Self::Zero { .. } => true,
        }
    }

    /// Does it, with the worker's `bytes`.
    pub(super) fn carry_out(&self, image: &Image, bytes: &mut [u8]) -> io::Result<()> {
        match *self {
            Self::Read(Extent { offset, len }) => image.read(offset, &mut bytes[..len as usize]),
            Self::Write(Extent { offset, len }) => image.write(offset, &bytes[..len as usize]),
            Self::Flush => image.flush(),
            Self::Discard(Extent { offset, len }) => image.discard(offset, len),
            Self::Zero { extent: Extent { offset, len }, may_discard } => {
                image.zero(offset, len, may_discard)
            }
        }
    }
}
