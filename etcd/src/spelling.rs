//! Keys, and how a record is spelled under one.
//!
//! Text, so that `etcdctl get` shows what is in force. A value that no arbiter
//! of this version wrote is refused, never replaced: it may be a newer one's.

use arbiter::{Record, VmId};

const MAGIC: &str = "romulus-register";
const VERSION: &str = "2";
/// Longest value that is read, in bytes; a record has some hundreds.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// Names below one prefix.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    vms: String,
    id: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { vms: format!("{prefix}vm/"), id: format!("{prefix}id") }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn of(&self, vm: &VmId) -> String {
        format!("{}{vm}", self.vms)
    }

    /// The first key of the VMs after `vm`, and the first that is no VM's.
    pub(crate) fn range_after(&self, vm: Option<&VmId>) -> (Vec<u8>, Vec<u8>) {
        // The least text that is greater than a key is that key and a zero.
        let start = vm.map_or_else(|| self.vms.clone(), |vm| format!("{}{vm}\0", self.vms));
        let mut end = self.vms.clone().into_bytes();
        *end.last_mut().expect("it ends with a slash") += 1;
        (start.into_bytes(), end)
    }

    pub(crate) fn vm(&self, key: &[u8]) -> Option<VmId> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.vms)?.parse().ok()
    }
}

/// `record` as it stands under its key.
///
/// # Panics
///
/// Never: ids and numbers always render.
#[must_use]
pub fn spell(record: &Record) -> Vec<u8> {
    let body = serde_json::to_string(record).expect("ids and numbers always render");
    format!("{MAGIC} {VERSION} {body}").into_bytes()
}

/// What stands under a key. Whoever may write there may have written anything.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn read(value: &[u8]) -> Result<Record, String> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!("it has {} bytes", value.len()));
    }
    let text = std::str::from_utf8(value).map_err(|_| "it is no text".to_owned())?;
    let mut words = text.splitn(3, ' ');
    match (words.next(), words.next(), words.next()) {
        (Some(MAGIC), Some(VERSION), Some(body)) => {
            serde_json::from_str(body).map_err(|error| error.to_string())
        }
        (Some(MAGIC), Some(version), _) => {
            Err(format!("it has version {version:?}, this arbiter reads {VERSION}"))
        }
        _ => Err(format!("it does not begin with `{MAGIC} {VERSION}`")),
    }
}

#[cfg(test)]
mod tests {
    use arbiter::{ImageId, Register, Stamp, Term};

    use super::*;

    #[test]
    fn values_are_spelled_so() {
        let register = Register {
            term: Term::new(3),
            primary: "p".parse().unwrap(),
            in_sync: [("b".parse().unwrap(), ImageId::new(5))].into(),
        };
        let record = Record { register, stamp: Stamp::new(u64::MAX) };
        let golden = "romulus-register 2 {\"register\":{\"term\":3,\"primary\":\"p\",\"in_sync\":{\"b\":5}},\"stamp\":18446744073709551615}";
        assert_eq!(String::from_utf8(spell(&record)).unwrap(), golden);
        assert_eq!(read(golden.as_bytes()), Ok(record));
        let newer = golden.replacen('2', "3", 1);
        assert!(read(newer.as_bytes()).unwrap_err().contains("version \"3\""));
        for length in 0..golden.len() {
            assert!(read(&golden.as_bytes()[..length]).is_err(), "cut at {length} was taken");
        }
    }

    #[test]
    fn a_range_has_the_keys_after_a_vm_and_no_others() {
        let keys = Keys::new("/romulus/");
        let vm = |name: &str| name.parse::<VmId>().unwrap();
        let within = |after: Option<&VmId>, key: &str| {
            let (start, end) = keys.range_after(after);
            (start.as_slice()..end.as_slice()).contains(&key.as_bytes())
        };
        assert!(within(None, &keys.of(&vm("a"))));
        assert!(!within(None, keys.id()));
        assert!(!within(Some(&vm("a")), &keys.of(&vm("a"))));
        assert!(within(Some(&vm("a")), &keys.of(&vm("a-1"))));
        assert!(within(Some(&vm("a")), &keys.of(&vm("b"))));
        assert_eq!(keys.vm(b"/romulus/vm/web-1"), Some(vm("web-1")));
        assert_eq!(keys.vm(b"/other/vm/web-1"), None);
    }
}
