//! Runs the cluster simulation: one seed with a trace, or many on all cores.
use romulus_tests::simulation::{Cluster, Mutation, Plan, Report};
use std::panic::{AssertUnwindSafe, catch_unwind};
fn one(seed: u64, mutation: Option<Mutation>, tells: bool) -> Result<Report, String> {
    let run = || Cluster::new(seed, Plan::draw(seed), mutation, tells).run();
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(violation)) => Err(violation.to_string()),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args[0] == "mutations" {
        std::panic::set_hook(Box::new(|_| {}));
        for mutation in Mutation::ALL {
            let found = (0..4000)
                .find_map(|seed| one(seed, Some(*mutation), false).err().map(|why| (seed, why)));
            match found {
                Some((seed, why)) => {
                    println!("{mutation:?}: {} seeds: {}", seed + 1, &why[..why.len().min(110)])
                }
                None => println!("{mutation:?}: NOT FOUND"),
            }
        }
        return;
    }
    let first: u64 = args[0].parse().unwrap();
    let count: u64 = args.get(1).map_or(1, |c| c.parse().unwrap());
    if count == 1 {
        println!("{:?}", Plan::draw(first));
        let mutation = args
            .get(2)
            .and_then(|name| Mutation::ALL.iter().find(|m| format!("{m:?}") == *name))
            .copied();
        println!("{:?}", one(first, mutation, true));
        return;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let begun = std::time::Instant::now();
    let mut total = Report::default();
    let mut failed = 0;
    for seed in first..first + count {
        match one(seed, None, false) {
            Ok(report) => total += report,
            Err(why) => {
                failed += 1;
                if failed < 40 {
                    println!("seed {seed}: {why}");
                }
            }
        }
    }
    println!("{total}");
    println!(
        "{failed} failed of {count}, {:.0} seeds/s",
        count as f64 / begun.elapsed().as_secs_f64()
    );
}
