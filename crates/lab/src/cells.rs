//! The cells of a plan: one for each combination of the matrix's values.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::{Plan, Suite, VmPlan, size_mib};

/// One combination of values. Its id is the same in every run of the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cell(BTreeMap<String, String>);

impl Cell {
    /// The value of each axis.
    pub fn values(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// The VM of this cell: that of the plan, with the values of the axes `image`, `kernel`, `cpus` and `memory`, and a
    /// variable for each axis.
    pub fn vm(&self, plan: &Plan) -> VmPlan {
        let mut vm = plan.vm.clone();
        for (axis, value) in &self.0 {
            match axis.as_str() {
                "image" => vm.image.clone_from(value),
                "kernel" => vm.kernel = Some(value.clone()),
                "cpus" => vm.cpus = value.parse().expect("a plan that was read has numbers of CPUs"),
                "memory" => vm.memory_mib = size_mib(value).expect("a plan that was read has sizes"),
                _ => {}
            }
        }
        vm.env.extend(self.0.clone());
        vm
    }

    /// Whether a suite runs in this cell.
    pub fn has(&self, suite: &Suite) -> bool {
        suite.only.iter().all(|(axis, values)| self.0.get(axis).is_some_and(|value| values.contains(value)))
    }
}

impl fmt::Display for Cell {
    /// `kernel=6.1 mount=ordered`, and `default` for the only cell of a plan without a matrix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.pad("default");
        }
        let pairs: Vec<_> = self.0.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
        f.pad(&pairs.join(" "))
    }
}

impl Plan {
    /// All cells, in an order that each run has.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = vec![Cell::default()];
        for (axis, values) in &self.matrix {
            let with = |cell: &Cell, value: &String| {
                let mut cell = cell.clone();
                cell.0.insert(axis.clone(), value.clone());
                cell
            };
            cells = cells.iter().flat_map(|cell| values.iter().map(|value| with(cell, value))).collect();
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = "[plan]\nname = 'x'\n[vm]\nenv = { A = '1' }\n[matrix]\ncpus = [1, 2]\nmemory = ['512M']\n\
                        mount = ['a', 'b']\n[[suite]]\nkind = 'tap'\nname = 'x'\nrun = 'x'\nonly = { mount = ['b'] }\n";

    #[test]
    fn a_matrix_makes_a_cell_for_each_combination() {
        let plan = Plan::parse(PLAN).expect("is right");
        let cells = plan.cells();
        let names: Vec<_> = cells.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "cpus=1 memory=512M mount=a",
                "cpus=1 memory=512M mount=b",
                "cpus=2 memory=512M mount=a",
                "cpus=2 memory=512M mount=b"
            ]
        );
        let has: Vec<_> = cells.iter().map(|cell| cell.has(&plan.suites[0])).collect();
        assert_eq!(has, [false, true, false, true]);
        let vm = cells[3].vm(&plan);
        assert_eq!((vm.cpus, vm.memory_mib), (2, 512));
        assert_eq!(vm.env["mount"], "b");
        assert_eq!(vm.env["A"], "1");
    }

    #[test]
    fn a_plan_without_a_matrix_has_one_cell() {
        let plan =
            Plan::parse("[plan]\nname = 'x'\n[[suite]]\nkind = 'tap'\nname = 'x'\nrun = 'x'\n").expect("is right");
        assert_eq!(plan.cells().iter().map(ToString::to_string).collect::<Vec<_>>(), ["default"]);
        assert!(plan.cells()[0].has(&plan.suites[0]));
    }
}
