//! The epoch machines against faults, in virtual time.

use romulus_tests::simulation::{Cluster, Faults};

const CALM: Faults = Faults { crash: 0, freeze: 0, cut: 0, arbiter: 0, damage: 0, handover: 0 };

#[test]
fn a_calm_cluster_protects_its_guest() {
    for nodes in 2..=4 {
        let report = Cluster::new(1, nodes, CALM, false).run();
        assert!(report.protected && !report.lost, "{report:?}");
        assert_eq!((report.promotions, report.fences), (0, 0));
        assert!(report.outputs > 1_000, "{report:?}");
        assert_eq!(report.term, nodes as u64, "one admission for each backup");
    }
}

#[test]
fn a_run_repeats_from_its_seed() {
    let faults = Faults { crash: 2, freeze: 4, cut: 8, arbiter: 4, damage: 20, handover: 4 };
    for seed in 0..20 {
        let runs = [(); 2].map(|()| Cluster::new(seed, 3, faults, false).run());
        assert_eq!(runs[0], runs[1]);
    }
}

/// Runs seeds and reports how many ended protected.
fn seeds(faults: Faults, nodes: usize, count: u64) {
    let only = std::env::var("SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    let seeds = only.map_or(0..count, |seed| seed..seed + 1);
    let (mut lost, mut promotions) = (0, 0);
    for seed in seeds {
        println!("seed {seed}");
        let report = Cluster::new(seed, nodes, faults, only.is_some()).run();
        lost += u64::from(report.lost);
        promotions += report.promotions;
        assert!(report.lost || report.protected, "seed {seed} did not heal: {report:?}");
    }
    println!("{count} seeds: {promotions} promotions, {lost} guests lost");
    assert!(only.is_some() || promotions > 0 && lost < count, "the faults did not bite");
}

#[test]
fn crashes() {
    seeds(Faults { crash: 1, ..CALM }, 2, 300);
}

#[test]
fn freezes() {
    seeds(Faults { freeze: 5, ..CALM }, 2, 300);
}

#[test]
fn cut_links() {
    seeds(Faults { cut: 8, ..CALM }, 2, 300);
}

#[test]
fn planned_switchovers() {
    seeds(Faults { handover: 5, ..CALM }, 2, 300);
}

#[test]
fn everything_at_once() {
    for nodes in 2..=4 {
        let faults = Faults { crash: 1, freeze: 3, cut: 5, arbiter: 4, damage: 20, handover: 3 };
        seeds(faults, nodes, 300);
    }
}
