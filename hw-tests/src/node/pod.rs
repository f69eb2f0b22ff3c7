//! Pods that scenarios run.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::runtime::IMAGE;

/// A pod of one container, a shell with a script.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What it is called.
    pub name: String,
    script: String,
    limits: Vec<(String, u32)>,
    annotations: serde_json::Map<String, Value>,
    restarts: &'static str,
    namespace: &'static str,
}

impl Pod {
    /// One that prints what it was given, and then `started`, and stays.
    pub fn new(name: &str) -> Self {
        let script = "env; ls -l /dev/vfio; echo started; trap 'exit 0' TERM; sleep 100000 & wait".to_owned();
        let (limits, annotations) = (Vec::new(), serde_json::Map::new());
        Self { name: name.to_owned(), script, limits, annotations, restarts: "Never", namespace: "default" }
    }

    /// In another namespace.
    #[must_use]
    pub fn inside(self, namespace: &'static str) -> Self {
        Self { namespace, ..self }
    }

    /// With so many of a resource.
    #[must_use]
    pub fn with(mut self, resource: &str, count: u32) -> Self {
        self.limits.push((resource.to_owned(), count));
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &Value) -> Self {
        self.annotations.insert(key.to_owned(), value.to_string().into());
        self
    }

    /// It does this, and is started again after it.
    #[must_use]
    pub fn again_and_again(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self.restarts = "Always";
        self
    }

    /// It does this.
    #[must_use]
    pub fn doing(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self
    }

    /// As the API has it.
    pub fn object(&self) -> Value {
        let limits: serde_json::Map<_, _> =
            self.limits.iter().map(|(name, count)| (name.clone(), json!(count.to_string()))).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "annotations": self.annotations},
            "spec": {
                "restartPolicy": self.restarts,
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": CONTAINER,
                    "image": IMAGE,
                    "imagePullPolicy": "Never",
                    "command": ["/bin/sh", "-c", self.script],
                    "resources": {"limits": limits},
                }],
            },
        })
    }
}

/// The value of a variable that a pod's `env` printed.
pub fn variable<'a>(said: &'a str, name: &str) -> Result<&'a str> {
    let value = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.with_context(|| format!("no {name} in:\n{said}"))
}

/// The character devices that a pod's `ls -l` printed.
pub fn nodes(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.starts_with('c')).filter_map(|line| line.rsplit(' ').next()).collect()
}

/// What its container is called.
pub const CONTAINER: &str = "main";
