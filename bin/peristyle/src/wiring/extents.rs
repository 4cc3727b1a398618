//! Why an extent is where it is.

use super::admin::Admin;
use super::devices::refuse;
use peristyle_base::{ColumnPlace, ExtentId, Scheme};
use peristyle_cluster::{DomainId, DomainUse, Standing, standings};
use peristyle_control::api::{ApiError, Code, ExtentColumn, ExtentDomain, ExtentInfo, Response};
use peristyle_control::desired::{FailureDomain, State};
use peristyle_control::setup::POOL;
use peristyle_shard::{ColumnFigures, ExtentFigures};
use std::collections::BTreeSet;

impl Admin {
    /// An extent of the shards that this node serves; each may have one of this number.
    pub(super) async fn extent_why(&self, extent: u64, shard: Option<u32>) -> Result<Response, ApiError> {
        let id = ExtentId(extent);
        if id > ExtentId::MAX {
            return Err(refuse(format!("no extent has a number as high as {extent}")));
        }
        let found = self.node.extents(id).await;
        let asked = found.into_iter().filter(|(of, _)| shard.is_none_or(|shard| of.0 == shard));
        let domains = standings(&self.views());
        let state = self.control.state();
        let extents: Vec<ExtentInfo> = asked
            .map(|(of, figures)| Explained { state: &state, domains: &domains }.extent(of.0, &figures))
            .collect();
        match extents.is_empty() {
            true => Err(ApiError::new(
                Code::NotFound,
                format!(
                    "no shard that this node serves has an extent {extent}: `peristyle cluster show` tells who serves which"
                ),
            )),
            false => Ok(Response::Extents { extents }),
        }
    }
}

/// What an extent is seen against.
struct Explained<'a> {
    state: &'a State,
    /// All failure domains, in the order of placement.
    domains: &'a [DomainUse],
}

impl Explained<'_> {
    fn extent(&self, shard: u32, figures: &ExtentFigures) -> ExtentInfo {
        let columns: Vec<ExtentColumn> = figures
            .columns
            .iter()
            .enumerate()
            .map(|(number, column)| self.column(number, column, figures.scheme))
            .collect();
        let taken: Vec<DomainId> = figures.columns.iter().filter_map(|c| self.domain_of(c.place)).collect();
        let others =
            self.domains.iter().filter(|d| !taken.contains(&d.domain)).map(|d| self.domain(d.domain));
        let pool = self.state.pools.get(&POOL).map_or(figures.scheme, |pool| pool.scheme);
        ExtentInfo {
            shard,
            extent: figures.id.0,
            scheme: figures.scheme.to_string(),
            scheme_because: match figures.scheme {
                scheme if scheme == pool => "the pool's scheme".into(),
                _ if !figures.of_pool => format!("the pool is {pool} now: what it holds is converted"),
                scheme if scheme.is_narrow() => {
                    format!(
                        "narrow, for frames that are too small for {pool}, or written while few failure domains were there"
                    )
                }
                _ => format!("a smaller k than {pool}, since failure domains were away"),
            },
            phase: figures.phase.into(),
            epoch: figures.epoch.0,
            rows: figures.rows,
            live_blocks: figures.live_blocks,
            map_blocks: figures.map_blocks,
            moving: figures.moving,
            apart: taken.iter().collect::<BTreeSet<_>>().len() == taken.len(),
            columns,
            others: others.collect(),
        }
    }

    fn column(&self, number: usize, column: &ColumnFigures, scheme: Scheme) -> ExtentColumn {
        let known = self.state.devices.get(&column.place.device);
        ExtentColumn {
            column: number as u32,
            part: if number < scheme.k() { "data" } else { "parity" }.into(),
            state: column.state.into(),
            device: known.map(|device| device.path.clone()),
            slot: known.map(|_| column.place.slot.0),
            domain: self.domain_of(column.place).map(|domain| self.domain(domain)),
        }
    }

    fn domain_of(&self, place: ColumnPlace) -> Option<DomainId> {
        self.state.devices.get(&place.device).map(|device| self.state.domain_of(device))
    }

    fn domain(&self, domain: DomainId) -> ExtentDomain {
        let at = self.domains.iter().position(|d| d.domain == domain);
        let seen = at.map(|at| self.domains[at]);
        let takes = |d: &DomainUse| matches!(d.standing, Standing::Takes | Standing::Slow);
        ExtentDomain {
            name: self.name(domain),
            rank: at.filter(|_| seen.as_ref().is_some_and(takes)).map(|at| at as u32 + 1),
            used_percent: seen.map_or(0.0, |d| 100.0 * d.slots_used as f64 / d.slots_total.max(1) as f64),
            standing: match seen.map_or(Standing::Away, |d| d.standing) {
                Standing::Takes => "takes columns",
                Standing::Slow => "slow",
                Standing::Full => "full",
                Standing::Leaving => "is to leave",
                Standing::Away => "away",
            }
            .into(),
        }
    }

    /// As the operator calls it.
    fn name(&self, domain: DomainId) -> String {
        let Some(device) = self.state.devices.values().find(|d| self.state.domain_of(d) == domain) else {
            return "unknown".into();
        };
        let kind = self.state.pools.get(&device.pool).map(|pool| pool.failure_domain).unwrap_or_default();
        let Some(node) = device.node.filter(|_| kind != FailureDomain::Device) else {
            return device.path.clone();
        };
        let labels = self.state.nodes.get(&node).map(|n| (n.rack.clone(), n.zone.clone()));
        match (kind, labels) {
            (FailureDomain::Rack, Some((Some(rack), _))) => format!("rack {rack}"),
            (FailureDomain::Zone, Some((_, Some(zone)))) => format!("zone {zone}"),
            _ => format!("node {node}"),
        }
    }
}
