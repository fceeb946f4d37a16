#include "gateway/router.h"

int kv_router_choose(const kv_router_node_t *nodes, size_t count)
{
    int best = -1;
    uint32_t best_load = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t load =
            nodes[i].outstanding > nodes[i].reported ? nodes[i].outstanding : nodes[i].reported;
        if (!nodes[i].tried && !nodes[i].unfit && (best < 0 || load < best_load)) {
            best = (int)i;
            best_load = load;
        }
    }
    return best;
}
