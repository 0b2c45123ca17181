"""Dashboard of what jobs run on: GPUs, network, Ray, queue; from exporters a cluster may have."""

from __future__ import annotations

from k8s.dashboards.panels import PODS, Dashboard, curve

_GPU = "{{pod}} GPU {{gpu}}"
_NODE = "{{instance}}"
_QUEUE = 'namespace=~"$namespace"'

HARDWARE = Dashboard(
    "ifsq-hardware",
    "iFSQ / Hardware",
    "GPUs (DCGM exporter), network (node exporter), Ray and Kueue, where they are scraped.",
    "ifsq_process_resident_memory_bytes",
    {
        "GPUs": (
            curve(
                "SM activity",
                "percentunit",
                f"DCGM_FI_PROF_SM_ACTIVE{{{PODS}}}",
                _GPU,
                "Share of time in which at least one warp is on an SM: how busy a GPU really is.",
                minimum=0,
                maximum=1,
            ),
            curve(
                "GPU clock",
                "hertz",
                f"DCGM_FI_DEV_SM_CLOCK{{{PODS}}} * 1e6",
                _GPU,
                "One GPU below the others slows down the whole run. Runbook: straggler-rank.",
                minimum=0,
            ),
            curve(
                "GPU memory used",
                "decmbytes",
                f"DCGM_FI_DEV_FB_USED{{{PODS}}}",
                _GPU,
                "Of all processes on the GPU.",
                minimum=0,
            ),
            curve(
                "GPU temperature",
                "celsius",
                f"DCGM_FI_DEV_GPU_TEMP{{{PODS}}}",
                _GPU,
                "Above about 85 degrees the clock goes down.",
            ),
            curve(
                "GPU power",
                "watt",
                f"DCGM_FI_DEV_POWER_USAGE{{{PODS}}}",
                _GPU,
                "Near its limit the clock goes down.",
                minimum=0,
            ),
            curve(
                "XID errors",
                "none",
                f"DCGM_FI_DEV_XID_ERRORS{{{PODS}}}",
                _GPU,
                "Number of the last error. Runbook: gpu-xid.",
                minimum=0,
            ),
            curve(
                "Uncorrectable memory errors",
                "none",
                f"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{{PODS}}}",
                _GPU,
                "Since the driver was loaded. Runbook: gpu-xid.",
                minimum=0,
            ),
            curve(
                "NVLink",
                "Bps",
                f"DCGM_FI_PROF_NVLINK_TX_BYTES{{{PODS}}} + DCGM_FI_PROF_NVLINK_RX_BYTES{{{PODS}}}",
                _GPU,
                "Bytes per second in both directions.",
                minimum=0,
            ),
        ),
        "Network": (
            curve(
                "InfiniBand",
                "Bps",
                "rate(node_infiniband_port_data_transmitted_bytes_total[$__rate_interval])",
                "{{instance}} {{device}}",
                "Sent by the ports of the nodes; zero while a run trains means NCCL uses sockets.",
                minimum=0,
            ),
            curve(
                "Pods' Ethernet",
                "Bps",
                "sum by (namespace, pod) (rate("
                f"container_network_transmit_bytes_total{{{PODS}}}[$__rate_interval]))",
                "{{pod}}",
                "Sent by each pod over its ordinary interface.",
                minimum=0,
            ),
        ),
        "Ray": (
            curve(
                "CPUs of Ray nodes",
                "percent",
                'ray_node_cpu_utilization{namespace=~"$namespace", run=~"$run"}',
                _NODE,
                "As Ray sees its node.",
                minimum=0,
            ),
            curve(
                "Memory of Ray nodes",
                "bytes",
                'ray_node_mem_used{namespace=~"$namespace", run=~"$run"}',
                _NODE,
                "A pod that reaches its limit is killed.",
                minimum=0,
            ),
            curve(
                "Object store",
                "bytes",
                'ray_object_store_memory{namespace=~"$namespace", run=~"$run"}',
                _NODE,
                "Decoded batches on their way to workers.",
                minimum=0,
            ),
        ),
        "Queue": (
            curve(
                "Jobs by state",
                "none",
                "sum by (namespace, deployment_status)"
                f" (kuberay_job_deployment_status{{{_QUEUE}}})",
                "{{namespace}} {{deployment_status}}",
                "As KubeRay counts them. Runbook: job-pending.",
                minimum=0,
            ),
            curve(
                "Waiting workloads",
                "none",
                "sum by (cluster_queue, status) (kueue_pending_workloads)",
                "{{cluster_queue}} {{status}}",
                "Active ones are tried; inadmissible ones do not fit.",
                minimum=0,
            ),
            curve(
                "Time to admission",
                "s",
                "histogram_quantile(0.5, sum by (le, cluster_queue)"
                " (rate(kueue_admission_wait_time_seconds_bucket[1h])))",
                "{{cluster_queue}} median",
                "From submission until Kueue lets a job start.",
                minimum=0,
            ),
        ),
    },
)
