//! Contenders, measured in turn, so that a machine that is slower for a while is
//! slower for all of them.

use std::fmt;

use super::{WireError, meter::Sample};
use crate::bench::statistics::Spread;

/// Where in an epoch's way a contender stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Baseline,
    Encode,
    Hash,
    Encrypt,
    Ship,
    Decode,
    Apply,
    Together,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Baseline => "baseline",
            Self::Encode => "encode",
            Self::Hash => "hash",
            Self::Encrypt => "encrypt",
            Self::Ship => "ship",
            Self::Decode => "decode",
            Self::Apply => "apply",
            Self::Together => "together",
        })
    }
}

/// Moves at least so many bytes once.
type Run = Box<dyn FnMut(u64) -> Result<Sample, WireError>>;

/// One way to do one stage.
pub(super) struct Contender {
    pub(super) stage: Stage,
    pub(super) name: String,
    run: Run,
}

impl Contender {
    pub(super) fn new(
        stage: Stage,
        name: impl Into<String>,
        run: impl FnMut(u64) -> Result<Sample, WireError> + 'static,
    ) -> Self {
        Self { stage, name: name.into(), run: Box::new(run) }
    }
}

/// What one contender did, in the order of the rounds.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) stage: Stage,
    pub(super) name: String,
    pub(super) samples: Vec<Sample>,
}

impl Standing {
    /// What the rounds say of a rate.
    pub(super) fn spread(&self, rate: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.samples.iter().map(rate))
    }
}

/// Lets every contender move `bytes` in every one of `rounds`. `begin` is told of
/// each run, `done` when it has ended.
pub(super) fn hold(
    mut contenders: Vec<Contender>,
    rounds: u32,
    bytes: u64,
    mut begin: impl FnMut(&str),
    mut done: impl FnMut(),
) -> Result<Vec<Standing>, WireError> {
    let mut samples: Vec<Vec<Sample>> = contenders.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (contender, samples) in contenders.iter_mut().zip(&mut samples) {
            begin(&contender.name);
            samples.push((contender.run)(bytes)?);
            done();
        }
    }
    let standing = |(Contender { stage, name, .. }, samples)| Standing { stage, name, samples };
    Ok(contenders.into_iter().zip(samples).map(standing).collect())
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc, time::Duration};

    use super::*;

    #[test]
    fn contenders_take_turns() {
        let turns = Rc::new(RefCell::new(String::new()));
        let contender = |name: &'static str| {
            let turns = turns.clone();
            Contender::new(Stage::Ship, name, move |bytes| {
                turns.borrow_mut().push_str(name);
                let time = Duration::from_millis(turns.borrow().len() as u64);
                Ok(Sample { bytes, clock: time, cpu: time / 2 })
            })
        };
        let contenders = vec![contender("a"), contender("b")];
        let standings = hold(contenders, 3, 1_000_000, |_| {}, || {}).unwrap();
        assert_eq!(*turns.borrow(), "ababab");
        let ms = |standing: &Standing| {
            standing.samples.iter().map(|sample| sample.clock.as_millis()).collect::<Vec<_>>()
        };
        assert_eq!((ms(&standings[0]), ms(&standings[1])), (vec![1, 3, 5], vec![2, 4, 6]));
    }
}
