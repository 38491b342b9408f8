//! Frames as a peer or the arbiter sends them: whole, and in the steps in which
//! sessions read them. Every frame has one spelling.

use checkpoint::message::Machine;
use transport::wire::{self, CHUNK_HEAD_BYTES, ChunkHead, Frame, HEADER_BYTES, Header, WireError};

use super::Verdict;

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let whole = wire::decode(bytes);
    assert_eq!(whole, in_steps(bytes), "two ways to read a frame");
    if let Ok((term, frame)) = &whole {
        assert_eq!(wire::encode(*term, frame).as_deref(), Ok(bytes), "a frame of two spellings");
        look(frame);
    }
    Verdict::of(&whole)
}

/// As `session::frames` reads a stream: the header, then the head of a chunk,
/// then what it announces.
fn in_steps(bytes: &[u8]) -> Result<(arbiter::Term, Frame), WireError> {
    let (head, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(WireError::Early)?;
    let header = Header::decode(head)?;
    assert_eq!(&header.encode(), head, "a header of two spellings");
    if let Some(id) = header.chunk
        && body.len() == header.body_bytes as usize
        && let Some((head, content)) = body.split_first_chunk::<CHUNK_HEAD_BYTES>()
    {
        let head = ChunkHead::decode(id, head)?;
        return Ok((header.term, Frame::Chunk(head.into_chunk(content.to_vec())?)));
    }
    Ok((header.term, header.decode_body(body)?))
}

/// What its receiver does with it before it acts.
fn look(frame: &Frame) {
    match frame {
        Frame::Hello(hello) => {
            let _ = wire::negotiate(&hello.versions);
            let ours = Machine { traits: Default::default(), ..hello.machine.clone() };
            for (one, other) in [(&ours, &hello.machine), (&hello.machine, &ours)] {
                if let Some(told) = one.difference(other) {
                    assert!(told.len() <= wire::TEXT_BYTES_MAX, "an answer that is cut");
                }
            }
            assert_eq!(hello.machine.difference(&ours).is_none(), hello.machine == ours);
        }
        Frame::Refusal(refusal) => drop(refusal.to_string()),
        Frame::Chunk(chunk) => drop(chunk.expected_digest()),
        Frame::Ask(wire::Ask::Execute(_, request)) => drop(request.target()),
        Frame::Welcome(_)
        | Frame::ToBackup(_)
        | Frame::ToPrimary(_)
        | Frame::Ask(wire::Ask::Load(_) | wire::Ask::List(_) | wire::Ask::Identify)
        | Frame::Answer(_) => {}
    }
}
