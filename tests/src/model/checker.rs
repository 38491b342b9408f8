//! Visits every state that a model can come to, breadth first.
//!
//! Ours, and small: `stateright` would do it, but brings a web server that
//! cannot be left out, and this is all that is needed of it.

use std::{collections::HashSet, fmt::Debug, hash::Hash};

/// Something that goes from state to state.
pub trait Model {
    /// Everything that there is at a moment.
    type State: Clone + Eq + Hash + Debug;
    /// What may happen next.
    type Action: Clone + Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// Everything that may happen in `state`, and what is then.
    fn next(&self, state: &Self::State, next: &mut Vec<(Self::Action, Self::State)>);

    /// What must hold in every state: `Err` says what does not.
    fn always(&self, state: &Self::State) -> Result<(), String>;

    /// What must be seen somewhere, so that the model is not empty: a bit for
    /// each that is so in `state`.
    fn sometimes(&self, state: &Self::State) -> u32;
}

/// All states were visited, and all is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// How many states there are.
    pub states: usize,
    /// The longest of the shortest ways to a state.
    pub depth: usize,
    /// What was seen somewhere, as [`Model::sometimes`] has it.
    pub seen: u32,
}

/// A state in which something does not hold, and the shortest way to it.
#[derive(Debug)]
pub struct Wrong<M: Model> {
    /// What does not hold.
    pub what: String,
    /// What happened, one thing after the other.
    pub way: Vec<M::Action>,
    /// What is then.
    pub state: M::State,
}

/// Visits every state of `model`.
///
/// # Errors
///
/// The first state found in which something does not hold.
///
/// # Panics
///
/// If there are more than `states_max`.
pub fn check<M: Model>(model: &M, states_max: usize) -> Result<Checked, Box<Wrong<M>>> {
    let mut seen_states = HashSet::new();
    // Only where a state came from, by number: the states themselves are in
    // the layer that is being visited, and in the set.
    let mut origins: Vec<(u32, Option<M::Action>)> = vec![(0, None)];
    let start = model.start();
    seen_states.insert(start.clone());
    let mut layer = vec![(0_u32, start)];
    let (mut depth, mut seen) = (0, 0);
    let mut next = Vec::new();
    while !layer.is_empty() {
        let mut following = Vec::new();
        for (number, state) in layer {
            if let Err(what) = model.always(&state) {
                return Err(Box::new(Wrong { what, way: way(&origins, number), state }));
            }
            seen |= model.sometimes(&state);
            model.next(&state, &mut next);
            for (action, state) in next.drain(..) {
                if seen_states.insert(state.clone()) {
                    assert!(seen_states.len() <= states_max, "more than {states_max} states");
                    origins.push((number, Some(action)));
                    following.push((origins.len() as u32 - 1, state));
                }
            }
        }
        layer = following;
        depth += 1;
    }
    Ok(Checked { states: seen_states.len(), depth, seen })
}

fn way<A: Clone>(origins: &[(u32, Option<A>)], mut number: u32) -> Vec<A> {
    let mut way = Vec::new();
    while let (before, Some(action)) = &origins[number as usize] {
        way.push(action.clone());
        number = *before;
    }
    way.reverse();
    way
}
