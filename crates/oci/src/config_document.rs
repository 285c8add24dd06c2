//! The form of a configuration in JSON, in the capital letters of docker.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{HealthTest, Healthcheck, History, ImageConfig};
use crate::digest::Digest;
use crate::json::Object;

/// An empty object, as Go writes a set.
#[derive(Deserialize, Serialize)]
pub(crate) struct Present {}

#[derive(Deserialize, Serialize)]
pub(crate) struct RawImage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    pub architecture: Option<String>,
    pub os: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    pub config: Option<Object<RawConfig>>,
    pub rootfs: Object<RawRootfs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<Object<RawHistory>>>,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct RawRootfs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RawConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, Object<Present>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Object<RawHealthcheck>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, Object<Present>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RawHealthcheck {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<i64>,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct RawHistory {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_layer: Option<bool>,
}

impl ImageConfig {
    /// The document for other programs. The same configuration gives the same bytes.
    pub fn to_json(&self, diff_ids: &[Digest]) -> Vec<u8> {
        serde_json::to_vec(&RawImage::new(self, diff_ids)).expect("its keys are texts")
    }
}

impl RawImage {
    fn new(config: &ImageConfig, diff_ids: &[Digest]) -> Self {
        let list = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
        let present = |set: &std::collections::BTreeSet<String>| {
            (!set.is_empty()).then(|| set.iter().map(|entry| (entry.clone(), Object(Present {}))).collect())
        };
        let history: Vec<_> = config.history.iter().map(|step| Object(step.into())).collect();
        let run = RawConfig {
            user: config.user.as_ref().map(ToString::to_string),
            exposed_ports: present(&config.exposed_ports),
            env: list(&config.env),
            entrypoint: list(&config.entrypoint),
            cmd: list(&config.cmd),
            healthcheck: config.healthcheck.as_ref().map(|check| Object(check.into())),
            volumes: present(&config.volumes),
            working_dir: config.working_dir.clone(),
            labels: (!config.labels.is_empty()).then(|| config.labels.clone()),
            stop_signal: config.stop_signal.map(|signal| signal.to_string()),
            shell: list(&config.shell),
        };
        Self {
            created: config.created.clone(),
            architecture: Some(config.architecture.clone()),
            os: Some(config.os.clone()),
            variant: config.variant.clone(),
            config: Some(Object(run)),
            rootfs: Object(RawRootfs { kind: "layers".to_owned(), diff_ids: Some(diff_ids.to_vec()) }),
            history: (!history.is_empty()).then_some(history),
        }
    }
}

impl From<&Healthcheck> for RawHealthcheck {
    fn from(check: &Healthcheck) -> Self {
        let test = match &check.test {
            HealthTest::Disabled => vec!["NONE".to_owned()],
            HealthTest::Command(words) => std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect(),
            HealthTest::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
        };
        let time = |time: Option<std::time::Duration>| time.and_then(|time| i64::try_from(time.as_nanos()).ok());
        Self {
            test: Some(test),
            interval: time(check.interval),
            timeout: time(check.timeout),
            start_period: time(check.start_period),
            retries: check.retries.map(i64::from),
        }
    }
}

impl From<&History> for RawHistory {
    fn from(step: &History) -> Self {
        Self {
            created: step.created.clone(),
            created_by: step.created_by.clone(),
            comment: step.comment.clone(),
            empty_layer: step.empty_layer.then_some(true),
        }
    }
}

impl From<RawHistory> for History {
    fn from(raw: RawHistory) -> Self {
        Self {
            created: raw.created,
            created_by: raw.created_by,
            comment: raw.comment,
            empty_layer: raw.empty_layer.unwrap_or(false),
        }
    }
}
