//! Descriptor chains from a guest that may be hostile.
//!
//! `virtio-queue` ends a chain silently when it loops, leaves the table or
//! cannot be read; here such a chain is a [`QueueFault`], as are buffers
//! outside RAM and buffers of the wrong direction. At most [`PARTS_MAX`]
//! descriptors are looked at, whatever the guest's tables say.

use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::device::GuestMemory;

/// Most descriptors of a chain: the largest queue that is offered.
pub(crate) const PARTS_MAX: usize = 256;

/// The guest broke the rules of its queue; it has to reset the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum QueueFault {
    #[error("a queue's ring cannot be read or written")]
    Ring,
    #[error("a descriptor chain loops, leaves its table or is too long")]
    Chain,
    #[error("a descriptor points outside RAM")]
    Address,
    #[error("a descriptor has the wrong direction")]
    Direction,
    #[error("a receive buffer is smaller than a frame")]
    Small,
    #[error("a request has no header, or no room for its status")]
    Headless,
}

impl From<virtio_queue::Error> for QueueFault {
    fn from(_: virtio_queue::Error) -> Self {
        Self::Ring
    }
}

/// Which way a chain's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromGuest,
    ToGuest,
    /// First those from the guest, then those to it (VIRTIO 1.2, section 2.7.4.2).
    Both,
}

/// The buffers of one chain.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The descriptor that goes into the used ring.
    pub(crate) head: u16,
    /// Address and length of each buffer, all of them RAM.
    pub(crate) parts: Vec<(GuestAddress, usize)>,
    /// Bytes from the guest: the first ones.
    pub(crate) readable: usize,
    /// Bytes in all: below 2^32.
    pub(crate) len: usize,
}

impl Buffers {
    /// Takes the next chain of `queue` apart; `false` if there is none.
    pub(crate) fn pop(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        direction: Direction,
    ) -> Result<bool, QueueFault> {
        // Asked first: the guest may make one available at any time.
        if !has_next(queue, memory)? {
            return Ok(false);
        }
        // There is one, so that without it the ring lies beyond RAM.
        let chain = queue.iter(memory)?.next().ok_or(QueueFault::Ring)?;
        self.collect(chain, memory, direction).map(|()| true)
    }

    fn collect(
        &mut self,
        chain: DescriptorChain<&GuestMemory>,
        memory: &GuestMemory,
        direction: Direction,
    ) -> Result<(), QueueFault> {
        self.head = chain.head_index();
        self.parts.clear();
        self.readable = 0;
        self.len = 0;
        let mut ended = false;
        for descriptor in chain {
            if ended || self.parts.len() == PARTS_MAX {
                return Err(QueueFault::Chain);
            }
            let (access, allowed) = if descriptor.is_write_only() {
                (Permissions::Write, direction != Direction::FromGuest)
            } else {
                let first = self.readable == self.len;
                (Permissions::Read, direction != Direction::ToGuest && first)
            };
            if !allowed {
                return Err(QueueFault::Direction);
            }
            let len = descriptor.len() as usize;
            if len > 0 && !memory.check_range(descriptor.addr(), len, access) {
                return Err(QueueFault::Address);
            }
            self.parts.push((descriptor.addr(), len));
            self.len += len;
            if access == Permissions::Read {
                self.readable += len;
            }
            ended = !descriptor.has_next();
        }
        if ended { Ok(()) } else { Err(QueueFault::Chain) }
    }

    /// Copies the chain's bytes from `from` on.
    pub(crate) fn read(
        &self,
        memory: &GuestMemory,
        from: usize,
        to: &mut [u8],
    ) -> Result<(), QueueFault> {
        self.pieces(from, to.len()).try_for_each(|(address, at, count)| {
            memory.read_slice(&mut to[at..at + count], address).map_err(|_| QueueFault::Address)
        })
    }

    /// Makes `from` the chain's bytes from `to` on.
    pub(crate) fn write(
        &self,
        memory: &GuestMemory,
        to: usize,
        from: &[u8],
    ) -> Result<(), QueueFault> {
        self.pieces(to, from.len()).try_for_each(|(address, at, count)| {
            memory.write_slice(&from[at..at + count], address).map_err(|_| QueueFault::Address)
        })
    }

    /// Each buffer's address, its bytes' place in a copy of all, and their
    /// number, for the bytes of the chain in `from..from + count`.
    fn pieces(
        &self,
        from: usize,
        count: usize,
    ) -> impl Iterator<Item = (GuestAddress, usize, usize)> + '_ {
        let end = from + count;
        let mut at = 0;
        self.parts.iter().filter_map(move |(address, len)| {
            let (start, stop) = (at, at + len);
            at = stop;
            let (first, last) = (start.max(from), stop.min(end));
            let skipped = (first - start.min(first)) as u64;
            (first < last).then(|| (GuestAddress(address.0 + skipped), first - from, last - first))
        })
    }
}

/// Whether the guest has made another chain available.
pub(crate) fn has_next(queue: &Queue, memory: &GuestMemory) -> Result<bool, QueueFault> {
    use virtio_queue::QueueT;
    let index = queue.avail_idx(memory, std::sync::atomic::Ordering::Acquire)?;
    Ok(index.0 != queue.next_avail())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU16, Ordering},
        thread,
    };

    use virtio_queue::QueueT;

    use super::*;
    use crate::device::fixture;

    const SIZE: u16 = 8;
    const AVAIL: u64 = 0x2000;

    fn queue() -> Queue {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(0x1000), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(0x3000), Some(0));
        queue.set_ready(true);
        queue
    }

    #[test]
    fn a_chain_that_comes_while_the_ring_is_looked_at_is_no_fault() {
        const CHAINS: u16 = 2000;
        let (memory, mut queue) = (fixture::memory(), queue());
        // The only descriptor: 64 bytes to be read.
        memory.write_slice(&64_u32.to_le_bytes(), GuestAddress(0x1008)).unwrap();
        let taken = AtomicU16::new(0);
        let mut faults = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                for chain in 1..=CHAINS {
                    memory.store(chain, GuestAddress(AVAIL + 2), Ordering::Release).unwrap();
                    while taken.load(Ordering::Acquire) < chain {
                        thread::yield_now();
                    }
                }
            });
            let mut buffers = Buffers::default();
            while taken.load(Ordering::Acquire) < CHAINS {
                match buffers.pop(&mut queue, &memory, Direction::FromGuest) {
                    Ok(popped) => taken.fetch_add(popped.into(), Ordering::AcqRel),
                    Err(fault) => {
                        faults.push(fault);
                        // The guest is not waited for.
                        taken.swap(CHAINS, Ordering::AcqRel)
                    }
                };
            }
        });
        assert_eq!(faults, []);
    }

    #[test]
    fn pieces_cut_a_chain_anywhere() {
        let buffers = Buffers {
            head: 0,
            parts: vec![(GuestAddress(100), 12), (GuestAddress(500), 0), (GuestAddress(200), 10)],
            readable: 22,
            len: 22,
        };
        let pieces = |from, count| {
            buffers.pieces(from, count).map(|(a, at, n)| (a.0, at, n)).collect::<Vec<_>>()
        };
        assert_eq!(pieces(0, 22), [(100, 0, 12), (200, 12, 10)]);
        assert_eq!(pieces(12, 10), [(200, 0, 10)]);
        assert_eq!(pieces(10, 4), [(110, 0, 2), (200, 2, 2)]);
        assert_eq!(pieces(22, 0), []);
    }
}
