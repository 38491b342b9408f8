//! Settings of the VM's file that an operator wants to try.

use std::str::FromStr;

use thiserror::Error;

/// `SECTION.KEY=VALUE`, with the value as in `VM.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    section: String,
    key: String,
    value: String,
}

/// Not a setting.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("write it like replication.compression='\"off\"' or vm.hugepages=true")]
pub struct InvalidSetting;

impl FromStr for Setting {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or(InvalidSetting)?;
        let (section, key) = name.trim().split_once('.').ok_or(InvalidSetting)?;
        let sound = ["vm", "replication"].contains(&section)
            && !key.is_empty()
            && key.bytes().all(|octet| octet.is_ascii_lowercase() || b"_".contains(&octet))
            && !value.trim().is_empty()
            && !value.contains('\n');
        let [section, key, value] = [section, key, value.trim()].map(str::to_owned);
        if sound { Ok(Self { section, key, value }) } else { Err(InvalidSetting) }
    }
}

/// The `lines` of `section`, with what is set instead of what they say.
#[must_use]
pub(super) fn with_settings(section: &str, lines: &str, settings: &[Setting]) -> String {
    let set: Vec<&Setting> = settings.iter().filter(|setting| setting.section == section).collect();
    let kept = lines.lines().filter(|line| {
        let key = line.split('=').next().unwrap_or_default().trim();
        set.iter().all(|setting| setting.key != key)
    });
    let added = set.iter().map(|Setting { key, value, .. }| format!("{key} = {value}"));
    let lines: Vec<String> = kept.map(str::to_owned).chain(added).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_takes_the_place_of_what_the_benchmark_chose() {
        let settings =
            ["replication.epoch_ms=7", "replication.compression = \"off\"", "vm.rng=false"]
                .map(|text| text.parse().unwrap());
        let lines = "epoch_ms = 25\n  mtu_max = 65000";
        let set = with_settings("replication", lines, &settings);
        assert_eq!(set, "  mtu_max = 65000\nepoch_ms = 7\ncompression = \"off\"");
        assert_eq!(with_settings("vm", "", &settings), "rng = false");
        assert_eq!(with_settings("node", "a = 1", &settings), "a = 1");
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for text in ["", "epoch_ms=1", "node.name=\"x\"", "vm.x", "vm.=1", "vm.x=", "vm.x=1\ny=2"] {
            assert_eq!(text.parse::<Setting>(), Err(InvalidSetting), "{text:?}");
        }
    }
}
