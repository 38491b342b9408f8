//! What the probe guest and its client say to each other, and the guest's
//! command line.

use romulus_probe::{Answer, Params, Request};

use super::Verdict;

pub(super) fn run(bytes: &[u8]) -> Verdict {
    let request = Request::decode(bytes);
    if let Ok(request) = &request {
        assert_eq!(Request::decode(&request.encode()).as_ref(), Ok(request));
    }
    let answer = Answer::decode(bytes);
    if let Ok(answer) = &answer {
        assert_eq!(Answer::decode(&answer.encode()).as_ref(), Ok(answer));
    }
    if let Ok(line) = std::str::from_utf8(bytes) {
        // Words that it does not know are somebody else's.
        let _ = Params::parse(line);
    }
    Verdict::of(&request.or(answer.map(|_| Request::Stats)))
}
