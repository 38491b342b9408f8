//! What is typed or piped in, read by a thread of its own: a blocked read must
//! not keep the session from ending. The thread ends with the process.

use std::{
    io::{self, Read, stdin},
    thread,
};

use tokio::sync::{mpsc, oneshot};

/// Ctrl-]
const DETACH: u8 = 0x1d;
/// Pieces that wait for the guest before the thread stops reading.
const PIECES_MAX: usize = 4;
const PIECE_BYTES: usize = 4096;

/// Typed or piped bytes.
pub(super) struct Input {
    /// Pieces, until stdin ends.
    pub(super) pieces: mpsc::Receiver<Vec<u8>>,
    /// Resolves when the detaching key was hit.
    pub(super) detached: oneshot::Receiver<()>,
}

impl Input {
    /// Reads stdin; `with_keys`, the detaching key is one.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub(super) fn begin(with_keys: bool) -> io::Result<Self> {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let (detach, detached) = oneshot::channel();
        thread::Builder::new()
            .name("stdin".into())
            .spawn(move || pass_on(stdin().lock(), with_keys, &sender, detach))?;
        Ok(Self { pieces, detached })
    }
}

fn pass_on(
    mut source: impl Read,
    with_keys: bool,
    pieces: &mpsc::Sender<Vec<u8>>,
    detach: oneshot::Sender<()>,
) {
    let mut buffer = [0; PIECE_BYTES];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::debug!(%error, "stdin cannot be read");
                break;
            }
        };
        let typed = &buffer[..count];
        let end = typed.iter().position(|byte| with_keys && *byte == DETACH);
        let piece = &typed[..end.unwrap_or(count)];
        if !piece.is_empty() && pieces.blocking_send(piece.to_vec()).is_err() {
            return;
        }
        if end.is_some() {
            let _ = detach.send(());
            return;
        }
    }
    if with_keys {
        // The terminal hung up.
        let _ = detach.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &'static [u8], with_keys: bool) -> (Vec<u8>, bool) {
        let (sender, mut pieces) = mpsc::channel(PIECES_MAX);
        let (detach, mut detached) = oneshot::channel();
        pass_on(bytes, with_keys, &sender, detach);
        drop(sender);
        let mut all = Vec::new();
        while let Some(piece) = pieces.blocking_recv() {
            all.extend(piece);
        }
        (all, detached.try_recv().is_ok())
    }

    #[test]
    fn the_detaching_key_ends_what_is_typed_and_is_a_byte_in_a_pipe() {
        assert_eq!(read(b"ab\x1dcd", true), (b"ab".to_vec(), true));
        assert_eq!(read(b"ab\x1dcd", false), (b"ab\x1dcd".to_vec(), false));
        assert_eq!(read(b"ab", true), (b"ab".to_vec(), true), "a terminal that hung up");
        assert_eq!(read(b"", false), (vec![], false));
    }
}
