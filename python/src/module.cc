// The Python extension: plans and calls of the C API. It converts, and releases the GIL; the package openmsa does the
// rest.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <openmsa/openmsa.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "exchange.h"
#include "tensor.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using openmsa::python::dtype_from_name;
using openmsa::python::dtype_name;
using openmsa::python::Tensors;
using openmsa::python::Views;

/// openmsa.Error: a status that is neither success nor an argument's fault.
class Failure : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(openmsa_status status) {
  if (status == OPENMSA_SUCCESS) return;
  if (status == OPENMSA_INVALID_ARGUMENT) throw nb::value_error(openmsa_last_error());
  throw Failure(std::string(openmsa_status_string(status)) + ": " + openmsa_last_error());
}

openmsa_backend backend_from_name(const std::string& name) {
  if (name == "cpu") return OPENMSA_BACKEND_CPU;
  if (name == "cuda") return OPENMSA_BACKEND_CUDA;
  if (name == "reference") return OPENMSA_BACKEND_REFERENCE;
  if (name == "reference_float32") return OPENMSA_BACKEND_REFERENCE_FLOAT32;
  throw nb::value_error(("backend: expected cpu, cuda, reference or reference_float32, got " + name).c_str());
}

openmsa_index_q_rounding rounding_from_name(const std::string& name) {
  if (name == "scaled") return OPENMSA_INDEX_Q_SCALED;
  if (name == "cast") return OPENMSA_INDEX_Q_CAST;
  if (name == "exact") return OPENMSA_INDEX_Q_EXACT;
  throw nb::value_error(("index_q_rounding: expected scaled, cast or exact, got " + name).c_str());
}

class Plan {
 public:
  explicit Plan(const openmsa_config& config) { check(openmsa_plan_create(&config, &plan_)); }
  ~Plan() { openmsa_plan_destroy(plan_); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  std::size_t workspace_bytes(openmsa_op op) const {
    std::size_t bytes = 0;
    check(openmsa_plan_workspace_bytes(plan_, op, &bytes));
    return bytes;
  }

  /// `reads` and `writes` map names to (array, dtype or ""); see Tensors::set.
  void run(openmsa_op op, nb::dict reads, nb::dict writes, std::uintptr_t workspace, std::size_t bytes,
           std::uintptr_t stream) const {
    Tensors tensors;
    add(reads, false, tensors);
    add(writes, true, tensors);
    run(op, tensors.get(), workspace, bytes, stream);
  }

  void run_views(openmsa_op op, const Views& views, std::uintptr_t workspace, std::size_t bytes) const {
    run(op, views.tensors, workspace, bytes, views.stream);
  }

 private:
  void run(openmsa_op op, const openmsa_tensors& tensors, std::uintptr_t workspace, std::size_t bytes,
           std::uintptr_t stream) const {
    const openmsa_workspace where = {reinterpret_cast<void*>(workspace), bytes, reinterpret_cast<void*>(stream)};
    openmsa_status status = OPENMSA_SUCCESS;
    {
      const nb::gil_scoped_release release;
      status = openmsa_run(plan_, op, &tensors, where);
    }
    check(status);
  }

  static void add(nb::dict arrays, bool is_written, Tensors& tensors) {
    for (const auto [name, value] : arrays) {
      const auto pair = nb::cast<nb::tuple>(value);
      tensors.set(nb::cast<std::string>(name), pair[0], nb::cast<std::string>(pair[1]), is_written);
    }
  }

  openmsa_plan* plan_ = nullptr;
};

void bind_operations(nb::module_& m) {
  nb::enum_<openmsa_op> operations(m, "Op", "Operations of the C API.");
  for (int number = 0; number < OPENMSA_OP_COUNT; ++number) {
    const auto op = static_cast<openmsa_op>(number);
    operations.value(openmsa_op_name(op), op);
  }
}

/// What the dimensions of each tensor count, by name.
nb::dict tensor_extents() {
  nb::dict tensors;
  for (std::int32_t i = 0; i < openmsa_tensor_count(); ++i) {
    const char* const name = openmsa_tensor_name(i);
    nb::list extents;
    for (std::int32_t d = 0; openmsa_tensor_extent(name, d) != nullptr; ++d) {
      extents.append(openmsa_tensor_extent(name, d));
    }
    tensors[name] = nb::tuple(extents);
  }
  return tensors;
}

/// Dtype of the tensor `name` of a layer in `dtype`.
const char* tensor_dtype(const std::string& name, const std::string& dtype) {
  openmsa_config config;
  openmsa_config_init(&config);
  config.dtype = dtype_from_name("dtype", dtype);
  return dtype_name(openmsa_tensor_dtype(&config, name.c_str()));
}

void bind_config(nb::module_& m) {
  const auto dtype = [](const char* name, openmsa_dtype openmsa_config::*member) {
    return [=](openmsa_config& config, const std::string& value) { config.*member = dtype_from_name(name, value); };
  };
  nb::class_<openmsa_config>(m, "Config", "openmsa_config, with its defaults.")
      .def("__init__", [](openmsa_config* config) { openmsa_config_init(config); })
      .def("set_backend",
           [](openmsa_config& config, const std::string& name) { config.backend = backend_from_name(name); })
      .def("set_dtype", dtype("dtype", &openmsa_config::dtype))
      .def("set_kv_dtype", dtype("kv_dtype", &openmsa_config::kv_dtype))
      .def("set_index_dtype", dtype("index_dtype", &openmsa_config::index_dtype))
      .def("set_index_q_rounding",
           [](openmsa_config& config, const std::string& name) { config.index_q_rounding = rounding_from_name(name); })
      .def("set_index_scale_per_block",
           [](openmsa_config& config, bool value) { config.index_scale_per_block = value ? 1 : 0; })
      .def_rw("num_heads_q", &openmsa_config::num_heads_q)
      .def_rw("num_heads_kv", &openmsa_config::num_heads_kv)
      .def_rw("head_dim", &openmsa_config::head_dim)
      .def_rw("index_dim", &openmsa_config::index_dim)
      .def_rw("block_size", &openmsa_config::block_size)
      .def_rw("topk", &openmsa_config::topk)
      .def_rw("num_init_blocks", &openmsa_config::num_init_blocks)
      .def_rw("num_local_blocks", &openmsa_config::num_local_blocks)
      .def_rw("softmax_scale", &openmsa_config::softmax_scale)
      .def_rw("page_size", &openmsa_config::page_size)
      .def_rw("max_batch", &openmsa_config::max_batch)
      .def_rw("max_total_q", &openmsa_config::max_total_q)
      .def_rw("max_seqlen_k", &openmsa_config::max_seqlen_k)
      .def_rw("max_total_k", &openmsa_config::max_total_k)
      .def_rw("num_threads", &openmsa_config::num_threads)
      .def_rw("shard_count", &openmsa_config::shard_count)
      .def_rw("shard_rank", &openmsa_config::shard_rank);
}

}  // namespace

NB_MODULE(_openmsa, m) {
  nb::set_leak_warnings(false);  // plans of calls without one live as long as the process
  m.doc() = "Plans and calls of openmsa's C API; use the package openmsa.";
  nb::exception<Failure>(m, "Error", PyExc_RuntimeError);
  bind_operations(m);
  bind_config(m);
  nb::class_<Plan>(m, "Plan", "openmsa_plan.")
      .def(nb::init<const openmsa_config&>(), "config"_a)
      .def("workspace_bytes", &Plan::workspace_bytes, "op"_a, "Bytes of workspace that the operation needs.")
      .def("run_views", &Plan::run_views, "op"_a, "views"_a, "workspace"_a, "workspace_bytes"_a,
           "Runs the operation on tensors of view_tensors, on their stream.")
      .def("run",
           nb::overload_cast<openmsa_op, nb::dict, nb::dict, std::uintptr_t, std::size_t, std::uintptr_t>(&Plan::run,
                                                                                                          nb::const_),
           "op"_a, "reads"_a, "writes"_a, "workspace"_a, "workspace_bytes"_a, "stream"_a,
           "Runs the operation; reads and writes map names to (array, dtype or \"\").");
  nb::class_<Views>(m, "Views", "Tensors of a call, on one device, and the current stream there.")
      .def_ro("is_cuda", &Views::is_cuda)
      .def_ro("device", &Views::device)
      .def_ro("stream", &Views::stream);
  m.def("view_tensors", &openmsa::python::view_tensors, "api"_a, "types"_a, "dicts"_a, "other"_a.none(),
        nb::sig("def view_tensors(api: object, types: tuple, dicts: tuple[dict, ...], other: object) -> Views | None"),
        "Tensors by name, seen through the exchange API of their types; None where one of them has no such view.");
  m.def("tensor_extents", &tensor_extents, nb::sig("def tensor_extents() -> dict[str, tuple[str, ...]]"),
        "Names of what the dimensions of each tensor count, by the tensor's name.");
  m.def("tensor_dtype", &tensor_dtype, "name"_a, "dtype"_a, "Dtype of a tensor of a layer in `dtype`.");
  m.def("version", &openmsa_version, "Version of the library.");
  m.def("cpu_features", &openmsa_cpu_features, "Instruction sets that the CPU backend can use, best first.");
  m.def("cuda_device", &openmsa_cuda_device, "The GPU of the CUDA backend, or why there is none.");
}
