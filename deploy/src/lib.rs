//! Images of the daemons and of the network functions, made without a container engine. *Not* part of what runs on a node.
//!
//! The manifests beside this crate are plain files; its tests hold them against the daemons.
//!
//! - [`product`]: which image holds which programs;
//! - [`closure`]: what a program loads; [`dpdk`]: what the forwarder loads for VFs;
//! - [`layer`]: files as a layer, the same bytes each time;
//! - [`image`]: layers as an image in a file.

pub mod closure;
pub mod dpdk;
pub mod image;
pub mod layer;
pub mod product;
