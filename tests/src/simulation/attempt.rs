//! A seed, and how it ended. A panic of a machine is a finding like any other.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{Cluster, Mutation, Plan, Report};

/// Runs the cluster of a seed, with a bug if one is wanted; `tells` prints what
/// happens.
///
/// # Errors
///
/// What is wrong, in words.
pub fn attempt(seed: u64, mutation: Option<Mutation>, tells: bool) -> Result<Report, String> {
    attempt_plan(seed, Plan::draw(seed), mutation, tells)
}

/// The same, with a plan that is not the seed's own.
///
/// # Errors
///
/// What is wrong, in words.
pub fn attempt_plan(
    seed: u64,
    plan: Plan,
    mutation: Option<Mutation>,
    tells: bool,
) -> Result<Report, String> {
    // A cluster that has panicked is not looked at any more.
    let run = AssertUnwindSafe(|| Cluster::new(seed, plan, mutation, tells).run());
    match catch_unwind(run) {
        Ok(ended) => ended.map_err(|violation| violation.to_string()),
        Err(panic) => Err(format!("panic: {}", words(panic.as_ref()))),
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}
