//! One request of a disk's driver, taken apart (VIRTIO 1.2, section 5.2.6).
//!
//! ```text
//!   from the guest                                     to the guest
//!   ├─ type:u32 reserved:u32 sector:u64 ─┬─ data ─┤    ├─ data ─┬─ status:u8 ─┤
//!   0                                    16   readable               len - 1
//! ```
//!
//! Where buffers begin and end does not matter (VIRTIO 1.2, section 2.7.4).
//! Everything that a request asks for is checked against the disk before any
//! of it is done.

use virtio_bindings::bindings::virtio_blk as blk;

use super::{
    super::chain::{Buffers, QueueFault},
    image::{Image, SECTOR_BYTES},
};
use crate::device::GuestMemory;

/// Bytes of `struct virtio_blk_outhdr`.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE_BYTES: usize = 16;
/// Ranges of one discarding or zeroing request.
pub(super) const RANGES_MAX: usize = 16;
/// Sectors of one such range.
pub(super) const RANGE_SECTORS_MAX: u32 = (4 << 20) / SECTOR_BYTES as u32;

/// How a request ended, as the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = blk::VIRTIO_BLK_S_OK as u8,
    IoError = blk::VIRTIO_BLK_S_IOERR as u8,
    Unsupported = blk::VIRTIO_BLK_S_UNSUPP as u8,
}

/// Bytes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What a request asks for. Extents lie within the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Read(Extent),
    Write(Extent),
    Flush,
    Identify,
    Discard(Vec<Extent>),
    Zero { extents: Vec<Extent>, may_discard: bool },
}

impl Request {
    /// Reads the request that `buffers` are.
    ///
    /// # Errors
    ///
    /// A [`QueueFault`] if there is no way to tell the guest what is wrong with
    /// it; else what it is to be told.
    pub(super) fn parse(
        buffers: &Buffers,
        memory: &GuestMemory,
        image: &Image,
    ) -> Result<Result<Self, Status>, QueueFault> {
        if buffers.readable < HEADER_BYTES || buffers.len == buffers.readable {
            return Err(QueueFault::Headless);
        }
        let mut header = [0; HEADER_BYTES];
        buffers.read(memory, 0, &mut header)?;
        let kind = u32_at(&header, 0);
        let sector = u64_at(&header, 8);
        let from_guest = (buffers.readable - HEADER_BYTES) as u64;
        let to_guest = (buffers.len - buffers.readable - 1) as u64;
        Ok(match kind {
            blk::VIRTIO_BLK_T_IN => extent(sector, to_guest, image).map(Self::Read),
            blk::VIRTIO_BLK_T_OUT => {
                writable(image).and_then(|()| extent(sector, from_guest, image)).map(Self::Write)
            }
            blk::VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            blk::VIRTIO_BLK_T_GET_ID => Ok(Self::Identify),
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                let mut ranges = [0; RANGE_BYTES * RANGES_MAX];
                let len = from_guest as usize;
                match ranges.get_mut(..len) {
                    Some(ranges) if len > 0 && len.is_multiple_of(RANGE_BYTES) => {
                        buffers.read(memory, HEADER_BYTES, ranges)?;
                        writable(image).and_then(|()| clear(kind, ranges, image))
                    }
                    _ => Err(Status::IoError),
                }
            }
            _ => Err(Status::Unsupported),
        })
    }
}

fn writable(image: &Image) -> Result<(), Status> {
    if image.is_read_only() { Err(Status::IoError) } else { Ok(()) }
}

/// `len` bytes from `sector` on, if they are whole sectors of the disk.
fn extent(sector: u64, len: u64, image: &Image) -> Result<Extent, Status> {
    let offset = sector.checked_mul(SECTOR_BYTES);
    let end = offset.and_then(|offset| offset.checked_add(len));
    match (offset, end) {
        (Some(offset), Some(end)) if len.is_multiple_of(SECTOR_BYTES) && end <= image.bytes() => {
            Ok(Extent { offset, len })
        }
        _ => Err(Status::IoError),
    }
}

/// A request that discards or zeroes `ranges`.
fn clear(kind: u32, ranges: &[u8], image: &Image) -> Result<Request, Status> {
    let may_discard_flag = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    let mut extents = Vec::new();
    let mut may_discard = true;
    for range in ranges.chunks_exact(RANGE_BYTES) {
        let (sector, sectors, flags) = (u64_at(range, 0), u32_at(range, 8), u32_at(range, 12));
        let known = if kind == blk::VIRTIO_BLK_T_DISCARD { 0 } else { may_discard_flag };
        if flags & !known != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > RANGE_SECTORS_MAX {
            return Err(Status::IoError);
        }
        may_discard &= flags & may_discard_flag != 0;
        extents.push(extent(sector, u64::from(sectors) * SECTOR_BYTES, image)?);
    }
    // The host refuses to clear nothing.
    extents.retain(|extent| extent.len > 0);
    Ok(match kind {
        blk::VIRTIO_BLK_T_DISCARD => Request::Discard(extents),
        _ => Request::Zero { extents, may_discard },
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
