#include "gateway/engines/engine.h"

#include "cluster/discovery.h"

kv_status_t kv_nodes_open(
    const kv_nodes_params_t *params, kv_nodes_t **nodes_out, kv_error_t *error)
{
    const kv_options_t *options = params->options;
    bool kvist = options->gateway.decode_nodes.count > 0 || kv_discovery_is_configured(options);
    bool vllm = options->gateway.vllm_nodes.count > 0;
    if (kvist && vllm) {
        return kv_fail(error, KV_INVALID,
            "gateway.vllm_nodes: is given beside %s: a gateway serves nodes of one engine; leave "
            "one of them out",
            options->gateway.decode_nodes.count > 0 ? "gateway.decode_nodes"
                                                    : "cluster.nodes or cluster.etcd");
    }
    if (!kvist && !vllm) {
        return kv_fail(error, KV_INVALID,
            "gateway.decode_nodes: is empty: name at least one, or set cluster.nodes, "
            "cluster.etcd or gateway.vllm_nodes");
    }
    return vllm ? kv_nodes_open_vllm(params, nodes_out, error)
                : kv_nodes_open_kvist(params, nodes_out, error);
}
