//! The client against servers that keep their word, and others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, tcp::ReadHalf},
    sync::Notify,
};

use super::*;

/// How a server fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Forgets the third key.
    Forgets,
    /// Keeps another value for the third key.
    Corrupts,
    /// Hangs up instead of acknowledging the third write, once.
    HangsUp,
    /// Takes no writes.
    Refuses,
}

/// After so many writes a server has seen enough.
const ENOUGH: u32 = 20;

/// A redis of two commands.
async fn serve(listener: TcpListener, fault: Fault, enough: Arc<Notify>) {
    let mut keys: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut writes = 0;
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut reads, mut answers) = stream.split();
        while let Some(words) = words(&mut reads).await {
            let answer = match (&words[..], fault) {
                ([_, key, value], _) => {
                    writes += 1;
                    if writes == ENOUGH {
                        enough.notify_one();
                    }
                    match (writes, fault) {
                        (3, Fault::HangsUp) => break,
                        (_, Fault::Refuses) => b"-OOM no room\r\n".to_vec(),
                        (3, Fault::Forgets) => b"+OK\r\n".to_vec(),
                        (3, Fault::Corrupts) => {
                            keys.insert(key.clone(), b"other".to_vec());
                            b"+OK\r\n".to_vec()
                        }
                        _ => {
                            keys.insert(key.clone(), value.clone());
                            b"+OK\r\n".to_vec()
                        }
                    }
                }
                ([_, key], _) => match keys.get(key) {
                    None => b"$-1\r\n".to_vec(),
                    Some(value) => {
                        let head = format!("${}\r\n", value.len());
                        [head.as_bytes(), value, b"\r\n"].concat()
                    }
                },
                (other, _) => panic!("a strange command of {} words", other.len()),
            };
            answers.write_all(&answer).await.unwrap();
        }
    }
}

/// The words of the next command; `None` at the end.
async fn words(stream: &mut ReadHalf<'_>) -> Option<Vec<Vec<u8>>> {
    let count = number(stream, b'*').await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(stream, b'$').await? + 2];
        stream.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(word);
    }
    Some(words)
}

async fn number(stream: &mut ReadHalf<'_>, kind: u8) -> Option<usize> {
    assert_eq!(stream.read_u8().await.ok()?, kind);
    let mut digits = String::new();
    loop {
        match stream.read_u8().await.ok()? {
            b'\r' => assert_eq!(stream.read_u8().await.ok()?, b'\n'),
            digit => {
                digits.push(char::from(digit));
                continue;
            }
        }
        return digits.parse().ok();
    }
}

async fn outcome(fault: Fault) -> (Result<TcpReport, TcpClientError>, Vec<TcpLine>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = TcpSettings {
        target: listener.local_addr().unwrap(),
        value_bytes: 100,
        rate_per_s: 200,
        duration: None,
    };
    let enough = Arc::new(Notify::new());
    tokio::spawn(serve(listener, fault, enough.clone()));
    let lines = Mutex::new(Vec::new());
    let note = |line: &TcpLine| {
        lines.lock().unwrap().push(line.clone());
        Ok(())
    };
    let report = run_until(enough.notified(), &settings, note).await;
    (report, lines.into_inner().unwrap())
}

#[tokio::test]
async fn a_server_that_keeps_its_word_is_sound() {
    let (report, lines) = outcome(Fault::None).await;
    let report = report.unwrap();
    assert!(report.sound(), "{report:?}");
    assert!(report.acknowledged >= u64::from(ENOUGH), "{report:?}");
    assert!(matches!(lines[..], [TcpLine::Progress(_), .., TcpLine::Report(_)]), "{lines:?}");
}

#[tokio::test]
async fn a_lost_write_is_found() {
    let report = outcome(Fault::Forgets).await.0.unwrap();
    assert_eq!((report.lost, report.corrupt, report.sound()), (1, 0, false), "{report:?}");
    assert_eq!(report.verified + 1, report.acknowledged);
}

#[tokio::test]
async fn another_value_is_found() {
    let report = outcome(Fault::Corrupts).await.0.unwrap();
    assert_eq!((report.lost, report.corrupt, report.sound()), (0, 1, false), "{report:?}");
}

#[tokio::test]
async fn a_second_connection_is_counted_and_is_not_sound() {
    let report = outcome(Fault::HangsUp).await.0.unwrap();
    assert_eq!((report.reconnects, report.sound()), (1, false), "{report:?}");
    assert_eq!(report.verified, report.acknowledged, "the write was repeated");
}

#[tokio::test]
async fn a_server_that_takes_nothing_is_an_error() {
    let said = outcome(Fault::Refuses).await.0.unwrap_err().to_string();
    assert!(said.contains("SET") && said.contains("no room"), "{said}");
}
