#include "cuda/common/launch.h"
#include "cuda/generic/lists/kernels.h"
#include "cuda/generic/lists/lists.cuh"

namespace openmsa::cuda::generic {

void make_lists(const ListParams& p, Launch launch) {
  const unsigned int ranges = ctas_for(p.rows, p.range_rows);
  const std::int64_t lists = p.heads * p.max_lists, slots = std::int64_t{p.rows} * p.topk;
  const LaunchShape range_per_cta{{ranges}, kPlaceThreads, 0};
  if (p.topk_indices.data == nullptr) {
    const LaunchShape thread_per_list{{ctas_for(lists, kCountThreads), ranges}, kCountThreads, 0};
    cuda::launch("count_rows", count_rows_kernel, thread_per_list, launch.stream, p);
    cuda::launch("place_items", place_items_kernel, range_per_cta, launch.stream, p);
    return;
  }
  const LaunchShape thread_per_slot{
      {ctas_for(slots, kSetBitsThreads), static_cast<unsigned int>(p.heads)}, kSetBitsThreads, 0};
  const LaunchShape warp_per_list{{ctas_for(lists, kListWarps), ranges}, kListWarps * 32, 0};
  cuda::launch("index_rows", index_rows_kernel, {{1}, kIndexRowsThreads, 0}, launch.stream, p);
  cuda::launch("set_bits", set_bits_kernel, thread_per_slot, launch.stream, p);
  cuda::launch("count_visits", count_visits_kernel, warp_per_list, launch.stream, p);
  cuda::launch("place_items", place_items_kernel, range_per_cta, launch.stream, p);
  cuda::launch("write_visits", write_visits_kernel, warp_per_list, launch.stream, p);
}

}  // namespace openmsa::cuda::generic
