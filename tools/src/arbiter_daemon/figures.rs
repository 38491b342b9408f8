//! An arbiter's figures for Prometheus, and the store that counts.
//!
//! Names are `romulus_arbiter_*`, units last; `docs/operations.md` lists them.

use std::{sync::Arc, time::Instant};

use arbiter::{Outcome, Record, Request, Store, StoreError, StoreId, VmId};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// All figures of an arbiter.
#[derive(Debug)]
pub(super) struct Figures {
    requests: Family<Kind, Counter>,
    read: Histogram,
    change: Histogram,
    pub(super) ready: Gauge,
    pub(super) registers: Gauge,
    pub(super) members: Gauge,
    pub(super) members_answering: Gauge,
    registry: Registry,
}

/// A kind of request, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    request: &'static str,
    answer: &'static str,
}

impl Default for Figures {
    fn default() -> Self {
        // 50 us to 4 s in steps of 1.6.
        let timing = || Histogram::new(exponential_buckets(5e-5, 1.6, 25));
        let mut figures = Self {
            requests: Family::default(),
            read: timing(),
            change: timing(),
            ready: Gauge::default(),
            registers: Gauge::default(),
            members: Gauge::default(),
            members_answering: Gauge::default(),
            registry: Registry::with_prefix("romulus_arbiter"),
        };
        figures.register();
        figures
    }
}

impl Figures {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("requests", "Requests by what came of them", self.requests.clone());
        let gauges = [
            ("ready", "Whether a request would be decided: 1 or 0", &self.ready),
            ("registers", "VMs that have a register", &self.registers),
            ("etcd_members", "Members of etcd that are configured", &self.members),
            (
                "etcd_members_answering",
                "Members of etcd that answer and know a leader",
                &self.members_answering,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        let timings = [
            ("read", "Time in the store of a request that reads", &self.read),
            ("change", "Time in the store of a request that changes", &self.change),
        ];
        for (name, help, timing) in timings {
            registry.register_with_unit(name, help, Unit::Seconds, timing.clone());
        }
    }

    fn count(&self, request: &'static str, answered: Result<&'static str, &StoreError>) {
        let answer = answered.unwrap_or_else(|error| match error {
            StoreError::Illegal(_) => "denied",
            StoreError::Untouched { .. } => "unavailable",
            StoreError::Unknown { .. } => "unknown",
        });
        self.requests.get_or_create(&Kind { request, answer }).inc();
    }

    /// All figures in Prometheus' text form.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

/// A store whose requests are counted.
pub(super) struct Counted {
    pub(super) store: Box<dyn Store + Send>,
    pub(super) figures: Arc<Figures>,
}

impl Counted {
    fn read<T>(
        &self,
        request: &'static str,
        ask: impl FnOnce(&dyn Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let answered = ask(self.store.as_ref());
        self.figures.read.observe(begun.elapsed().as_secs_f64());
        self.figures.count(request, answered.as_ref().map(|_| "read"));
        answered
    }
}

impl Store for Counted {
    fn id(&self) -> Result<StoreId, StoreError> {
        self.read("identify", |store| store.id())
    }

    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        self.read("load", |store| store.load(vm))
    }

    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        let begun = Instant::now();
        let answered = self.store.execute(vm, request);
        self.figures.change.observe(begun.elapsed().as_secs_f64());
        let answer = answered.as_ref().map(|outcome| match outcome {
            Outcome::Set(_) => "set",
            Outcome::Mismatch(_) => "mismatch",
        });
        self.figures.count("execute", answer);
        answered
    }

    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        self.read("list", |store| store.list())
    }
}

#[cfg(test)]
mod tests {
    use arbiter::{FileStore, ImageId, Operation, Stamp};

    use super::*;

    #[test]
    fn requests_are_counted_by_what_came_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(&folder.path().join("register")).unwrap();
        let figures = Arc::new(Figures::default());
        let mut counted = Counted { store: Box::new(store), figures: figures.clone() };
        let vm = "web".parse().unwrap();
        let create = |stamp| Request {
            caller: "a".parse().unwrap(),
            expected: None,
            operation: Operation::Create,
            stamp: Stamp::new(stamp),
        };
        assert_eq!(counted.load(&vm).unwrap(), None);
        assert!(matches!(counted.execute(&vm, &create(1)).unwrap(), Outcome::Set(_)));
        assert!(matches!(counted.execute(&vm, &create(2)).unwrap(), Outcome::Mismatch(_)));
        let promote =
            Request { operation: Operation::Promote { image: ImageId::new(5) }, ..create(3) };
        assert!(counted.execute(&vm, &promote).is_err());
        figures.registers.set(1);
        let text = figures.render();
        for line in [
            "romulus_arbiter_requests_total{request=\"load\",answer=\"read\"} 1",
            "romulus_arbiter_requests_total{request=\"execute\",answer=\"set\"} 1",
            "romulus_arbiter_requests_total{request=\"execute\",answer=\"mismatch\"} 1",
            "romulus_arbiter_requests_total{request=\"execute\",answer=\"denied\"} 1",
            "romulus_arbiter_change_seconds_count 3",
            "romulus_arbiter_read_seconds_count 1",
            "romulus_arbiter_registers 1",
            "romulus_arbiter_ready 0",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
