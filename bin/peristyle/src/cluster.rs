//! Commands for a cluster of nodes: made in its store, shown by a node.

use crate::cli::{ClusterCommand, CreateOptions};
use crate::client::Client;
use crate::failure::Failure;
use crate::online::{print, unexpected};
use crate::render;
use crate::wiring;
use peristyle_base::Uuid;
use peristyle_cluster::TooFewPolicy;
use peristyle_control::api::{Request, Response};
use peristyle_control::desired::{check_name, check_nqn};
use peristyle_control::member::NewCluster;
use std::path::PathBuf;

pub fn cluster(command: ClusterCommand, admin: Option<PathBuf>) -> Result<(), Failure> {
    match command {
        ClusterCommand::Create(options) => create(&options),
        ClusterCommand::Token { name, store, new_secret } => {
            check_name(&name).map_err(Failure::from)?;
            print(&format!("{}\n", wiring::found::token(&name, &store, new_secret)?));
            if !new_secret {
                eprintln!(
                    "peristyle: without its secret, which only the tokens in the nodes' configurations have"
                );
            }
            Ok(())
        }
        ClusterCommand::Show(json) => {
            match Client::connect(admin)?.call(&Request::ClusterShow)? {
                Response::Cluster(info) if json.json => print(&render::json(&info)),
                Response::Cluster(info) => print(&render::cluster(&info)),
                other => return Err(unexpected(other)),
            }
            Ok(())
        }
    }
}

fn create(options: &CreateOptions) -> Result<(), Failure> {
    check_name(&options.name).map_err(Failure::from)?;
    if let Some(nqn) = &options.nqn {
        check_nqn(nqn).map_err(Failure::from)?;
    }
    let new = NewCluster {
        uuid: Uuid::default(),
        nqn: options.nqn.clone(),
        pool_name: "main".into(),
        scheme: options.scheme,
        too_few_domains: match options.continue_with_fewer {
            true => TooFewPolicy::Continue,
            false => TooFewPolicy::Refuse,
        },
        failure_domain: options.failure_domain.into(),
        shards: options.shards as usize,
    };
    let token = wiring::found::create(&options.name, &options.store, new)?;
    print(&match options.json.json {
        true => render::json(&serde_json::json!({ "token": token.to_string() })),
        false => format!("{token}\n"),
    });
    Ok(())
}
