//! Models of latency and throughput. Pure: no clock, no I/O, one seed gives one answer.
//!
//! Read first: [`queue`] (closed forms of textbooks), [`stage::Model`] (a path as stations and visits), [`sim::evaluate`] (what a
//! load does on it), [`fit`] (a model from one profile at light load), [`curve`] (the knee), [`whatif`] (the same model, changed),
//! [`class`] (a class of machines from its raw figures), [`scaling`] (more nodes than were measured).

pub mod class;
pub mod curve;
pub mod fit;
pub mod queue;
pub mod scaling;
pub mod sim;
pub mod stage;
pub mod whatif;
