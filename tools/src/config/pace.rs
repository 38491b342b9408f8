//! `[replication]`: when epochs end. A fixed interval, or one of the targets.

use std::time::Duration;

use checkpoint::pacing::{Goal, Pace};
use serde::{Serializer, ser::SerializeMap};

use super::{
    error::Fault,
    section::{Found, Section},
};

const INTERVAL_MS_MAX: u64 = 10_000;
/// Epochs with more page content do not end early: the pause would cost more
/// than the wait.
const EARLY_BYTES_MAX: u64 = 2 << 20;
/// How much longer than its interval an epoch gets while backups lag, before
/// the guest is held.
const STRETCH_MAX: u32 = 4;

/// Reads the keys; also returns the longest interval.
pub(super) fn parse(section: &mut Section<'_>) -> Result<(Pace, Found<u64>), Fault> {
    let fixed = section.has("epoch_ms");
    let epoch = section.number("epoch_ms", 25, 1..=INTERVAL_MS_MAX, " ms")?;
    let least = section.number("epoch_ms_min", 2, 1..=INTERVAL_MS_MAX, " ms")?;
    let most = section.number("epoch_ms_max", 100, 1..=INTERVAL_MS_MAX, " ms")?;
    if least.value > most.value {
        let problem = format!("{} ms are more than epoch_ms_max of {} ms", least.value, most.value);
        return Err(least.fault(problem, format!("use at most {}", most.value)));
    }
    let target = parse_target(section)?;
    if let Some((_, found)) = &target
        && fixed
    {
        let remedy = "leave out one of the two; epoch_ms_min and epoch_ms_max bound a target";
        return Err(found.fault("does not go with a fixed epoch_ms", remedy));
    }
    let early = section.flag("early_epochs", true)?;
    let gap = section.number("early_gap_ms", 2, 1..=1000, " ms")?;
    let longest = if target.is_some() { most.clone() } else { epoch.clone() };
    let interval = Duration::from_millis(epoch.value);
    let pace = Pace {
        goal: target.map_or(Goal::Interval(interval), |(goal, _)| goal),
        interval_min: Duration::from_millis(least.value),
        interval_max: Duration::from_millis(most.value),
        early,
        gap_min: Duration::from_millis(gap.value),
        early_bytes_max: EARLY_BYTES_MAX,
        stretch_max: STRETCH_MAX,
    };
    Ok((pace, longest))
}

/// A target's number, in the unit of its key, as the pacer's goal.
type ToGoal = fn(u64) -> Goal;

/// At most one of the targets.
fn parse_target(section: &mut Section<'_>) -> Result<Option<(Goal, Found<u64>)>, Fault> {
    let mut target: Option<(Goal, Found<u64>)> = None;
    let goals: [(&'static str, &str, ToGoal); 3] = [
        ("pause_target_us", " us", |us| Goal::Pause(Duration::from_micros(us))),
        ("latency_target_ms", " ms", |ms| Goal::Latency(Duration::from_millis(ms))),
        ("bandwidth_target_mib_per_s", " MiB/s", |mib| Goal::BytesPerSecond(mib << 20)),
    ];
    for (key, unit, goal) in goals {
        if !section.has(key) {
            continue;
        }
        let found = section.number(key, 0, 1..=1_000_000, unit)?;
        if let Some((_, first)) = &target {
            let problem = format!("does not go with {}", first.key);
            return Err(found.fault(problem, "set one target"));
        }
        target = Some((goal(found.value), found));
    }
    Ok(target)
}

/// As the keys of the configuration.
pub(super) fn serialize<S: Serializer>(pace: &Pace, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    match pace.goal {
        Goal::Interval(interval) => map.serialize_entry("epoch_ms", &interval.as_millis())?,
        Goal::Pause(pause) => map.serialize_entry("pause_target_us", &pause.as_micros())?,
        Goal::Latency(latency) => map.serialize_entry("latency_target_ms", &latency.as_millis())?,
        Goal::BytesPerSecond(rate) => {
            map.serialize_entry("bandwidth_target_mib_per_s", &(rate >> 20))?;
        }
    }
    if !matches!(pace.goal, Goal::Interval(_)) {
        map.serialize_entry("epoch_ms_min", &pace.interval_min.as_millis())?;
        map.serialize_entry("epoch_ms_max", &pace.interval_max.as_millis())?;
    }
    map.serialize_entry("early_epochs", &pace.early)?;
    map.serialize_entry("early_gap_ms", &pace.gap_min.as_millis())?;
    map.end()
}
