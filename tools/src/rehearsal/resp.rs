//! As much of redis' protocol as a client that writes and reads keys needs:
//! RESP2, <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
//!
//! ```text
//!   command   *COUNT CR LF ($LENGTH CR LF BYTES CR LF)…
//!   reply     +TEXT CR LF | -TEXT CR LF | $LENGTH CR LF BYTES CR LF | $-1 CR LF
//! ```

/// Longest bulk string that is believed.
const BULK_BYTES_MAX: usize = 1 << 20;
/// Longest line that is believed.
const LINE_BYTES_MAX: usize = 4096;
const END: &[u8] = b"\r\n";

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// It is done.
    Done,
    /// It was refused, for this reason.
    Refused(String),
    /// A value.
    Value(Vec<u8>),
    /// There is no value.
    Nothing,
    /// Something that is no answer to our commands.
    Strange,
}

/// A command of `words`.
pub(super) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(END);
    }
    bytes
}

/// Takes the first reply off `bytes`, if it has come whole.
pub(super) fn take_reply(bytes: &mut Vec<u8>) -> Option<Reply> {
    let (reply, used) = parse(bytes)?;
    bytes.drain(..used);
    Some(reply)
}

fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let Some(line_end) = bytes.windows(END.len()).position(|pair| pair == END) else {
        return (bytes.len() > LINE_BYTES_MAX).then_some((Reply::Strange, bytes.len()));
    };
    let used = line_end + END.len();
    let text = String::from_utf8_lossy(&bytes[1.min(line_end)..line_end]).into_owned();
    match bytes[0] {
        b'+' => Some((Reply::Done, used)),
        b'-' => Some((Reply::Refused(text), used)),
        b'$' if text == "-1" => Some((Reply::Nothing, used)),
        b'$' => match text.parse::<usize>() {
            Ok(length) if length <= BULK_BYTES_MAX => {
                let whole = used + length + END.len();
                let value = bytes.get(used..whole)?[..length].to_vec();
                Some((Reply::Value(value), whole))
            }
            Ok(_) | Err(_) => Some((Reply::Strange, used)),
        },
        _ => Some((Reply::Strange, used)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_spelled_as_redis_reads_it() {
        let spelled = command(&[b"SET", b"k", b"a\r\nb"]);
        assert_eq!(spelled, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n");
    }

    #[test]
    fn replies_are_taken_when_they_are_whole() {
        let all = b"+OK\r\n$4\r\na\r\nb\r\n$-1\r\n$0\r\n\r\n-LOADING later\r\n:1\r\n$x\r\n";
        let (mut bytes, mut replies) = (Vec::new(), Vec::new());
        for byte in all {
            bytes.push(*byte);
            replies.extend(take_reply(&mut bytes));
        }
        let value = |text: &str| Reply::Value(text.into());
        let expected = [
            Reply::Done,
            value("a\r\nb"),
            Reply::Nothing,
            value(""),
            Reply::Refused("LOADING later".into()),
            Reply::Strange,
            Reply::Strange,
        ];
        assert_eq!(replies, expected);
        assert!(bytes.is_empty());
    }

    #[test]
    fn what_never_ends_is_strange() {
        let mut bytes = vec![b'+'; LINE_BYTES_MAX + 1];
        assert_eq!(take_reply(&mut bytes), Some(Reply::Strange));
        assert_eq!(take_reply(&mut b"\r\n".to_vec()), Some(Reply::Strange));
        let huge = format!("${}\r\n", BULK_BYTES_MAX + 1);
        assert_eq!(take_reply(&mut huge.into_bytes()), Some(Reply::Strange));
    }
}
