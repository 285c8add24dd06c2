//! Networks of several VMs: made, listed and removed. They outlive the process that makes them.

use kiln_net::policy::Policy;
use kiln_net::slots::{Network, Networks};

use super::error::NetworkError;
use super::lab::{check, networks};
use crate::blocking::assert_may_block;
use crate::home::Home;

/// The networks of a home that VMs can share. Everything here blocks for milliseconds.
#[derive(Debug, Clone)]
pub struct Labs {
    networks: Networks,
}

impl Labs {
    /// Opens them, and frees the places of VMs that are gone.
    ///
    /// # Errors
    /// [`NetworkError::LabNotRoot`]; or their journal can't be read.
    pub fn open(home: &Home) -> Result<Self, NetworkError> {
        assert_may_block();
        let networks = networks(home)?;
        networks.recover()?;
        Ok(Self { networks })
    }

    /// Makes a network. The policy is for what leaves it.
    ///
    /// # Errors
    /// [`NetworkError::RuleByName`]; or there is a network of that name, or it can't be made.
    pub fn create(&self, name: &str, policy: &Policy) -> Result<(), NetworkError> {
        check(policy)?;
        Ok(self.networks.create(name, policy)?)
    }

    /// All of them, by name, with their VMs.
    ///
    /// # Errors
    /// Their journal can't be read.
    pub fn list(&self) -> Result<Vec<Network>, NetworkError> {
        Ok(self.networks.list()?)
    }

    /// Removes one. Refuses if VMs use it.
    ///
    /// # Errors
    /// There is no such network, VMs use it, or a part of it can't be removed.
    pub fn remove(&self, name: &str) -> Result<(), NetworkError> {
        Ok(self.networks.remove(name)?)
    }
}
