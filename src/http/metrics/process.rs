//! Metrics of a process: the daemon's, and those of the companion itself.

use std::fmt;

use keyward_admin::message::Process;
use keyward_service::process;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::writer::Writer;

/// The metrics of this process.
#[derive(Debug)]
pub(super) struct OwnProcess;

impl Collector for OwnProcess {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Without /proc there are none.
        let Ok(process) = process::Process::read() else { return Ok(()) };
        let process::Process {
            start_unix_s,
            cpu_s,
            resident_bytes,
            virtual_bytes,
            threads,
            open_fds,
            max_fds,
        } = process;
        let process =
            Process { start_unix_s, cpu_s, resident_bytes, virtual_bytes, threads, open_fds, max_fds };
        write(&process, "process", &mut Writer::new(encoder))
    }
}

/// Writes the metrics of a process, with `prefix` before their names.
pub(super) fn write(process: &Process, prefix: &str, writer: &mut Writer<'_>) -> fmt::Result {
    let name = |suffix: &str| format!("{prefix}_{suffix}");
    writer.seconds_counter(&name("cpu_seconds"), "Processor time", process.cpu_s)?;
    writer.gauge(&name("resident_memory_bytes"), "Resident memory", process.resident_bytes as f64)?;
    writer.gauge(&name("virtual_memory_bytes"), "Virtual memory", process.virtual_bytes as f64)?;
    writer.gauge(&name("threads"), "Threads", process.threads as f64)?;
    writer.gauge(&name("open_fds"), "Open descriptors", process.open_fds as f64)?;
    writer.gauge(&name("max_fds"), "The limit of open descriptors", process.max_fds as f64)?;
    writer.gauge(&name("start_time_seconds"), "When the process was started", process.start_unix_s)
}
