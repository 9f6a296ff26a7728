//! The generated messages, clients and servers of `proto/`, and the few conversions that everybody needs.
//!
//! No I/O and no rules of the trade: what a message means is written in its `.proto` file.

pub mod codec;
pub mod time;

/// The descriptors of every message and service, for server reflection: an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/logmesh.bin"));

macro_rules! package {
    ($area:ident, $name:literal) => {
        #[doc = concat!("The protobuf package `", $name, "`.")]
        pub mod $area {
            /// Version 1.
            #[allow(missing_debug_implementations, unreachable_pub, clippy::all)]
            pub mod v1 {
                tonic::include_proto!($name);
            }
        }
    };
}

package!(audit, "logmesh.audit.v1");
package!(config, "logmesh.config.v1");
package!(discovery, "logmesh.discovery.v1");
package!(fleet, "logmesh.fleet.v1");
package!(ingest, "logmesh.ingest.v1");
package!(search, "logmesh.search.v1");
package!(transfer, "logmesh.transfer.v1");
