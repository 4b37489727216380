// The Python module sparsegan._native: build and CPU-feature information, the plan compiler and the codecs, on numpy
// arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "../cpu/conv.h"
#include "../cpu/registry.h"
#include "../plan/device_plan.h"
#include "../plan/plan.h"
#include "../plan/support.h"

namespace py = pybind11;

namespace sparsegan {
void bind_codec(py::module_& m);
}

namespace {

using sparsegan::Geometry;
using Int32Array = py::array_t<int32_t, py::array::c_style>;

// `shape` and `compile` are those of plan.h, or of device_plan.h.
template <class Shape, class Compile>
Int32Array compiled(const Int32Array& support, const std::vector<int64_t>& numbers, bool adjoint, const Shape& shape,
                    const Compile& compile) {
  const Geometry geometry = Geometry::from_list(numbers);
  // Copied first: another thread may write into the array at any time, and only what was checked may be compiled.
  const std::vector<int32_t> units(support.data(), support.data() + support.size());
  const auto taps = static_cast<int64_t>(units.size());
  sparsegan::check_support(units.data(), units.size(), geometry.units());
  Int32Array plan(shape(geometry, adjoint, taps).size());
  int32_t* const out = plan.mutable_data();
  {
    py::gil_scoped_release release;
    compile(geometry, adjoint, units.data(), taps, out);
  }
  return plan;
}

template <auto shape, auto compile>
Int32Array compile_plan(const Int32Array& support, const std::vector<int64_t>& numbers, bool adjoint) {
  return compiled(support, numbers, adjoint, shape, compile);
}

std::pair<Int32Array, Int32Array> compile_direct_plan(const Int32Array& support, const std::vector<int64_t>& numbers,
                                                      bool adjoint) {
  Int32Array order(support.size());
  const auto compile = [&](const Geometry& geometry, bool coarse_to_fine, const int32_t* units, int64_t taps,
                           int32_t* out) {
    sparsegan::compile_direct_plan(geometry, coarse_to_fine, units, taps, out, order.mutable_data());
  };
  Int32Array plan = compiled(support, numbers, adjoint, sparsegan::direct_plan_shape, compile);
  return {std::move(plan), std::move(order)};
}

template <auto shape>
int64_t plan_size(const std::vector<int64_t>& numbers, bool adjoint, int64_t taps) {
  return shape(Geometry::from_list(numbers), adjoint, taps).size();
}

py::dict gather_cycles(const std::vector<int64_t>& numbers, bool adjoint, int64_t taps, int64_t images,
                       const std::vector<int64_t>& x_size, const std::vector<int64_t>& y_size, bool float64) {
  const Geometry geometry = Geometry::from_list(numbers);
  sparsegan::PlanView plan;
  plan.shape = sparsegan::plan_shape(geometry, adjoint, taps);
  const sparsegan::DType dtype = float64 ? sparsegan::DType::float64 : sparsegan::DType::float32;
  const sparsegan::Cycles cycles = sparsegan::gather_cycles(
      {&geometry, adjoint, &plan, dtype, images, x_size.at(0), x_size.at(1), y_size.at(0), y_size.at(1)});
  py::dict parts;
  parts["multiplying"] = cycles.multiply;
  parts["reading taps"] = cycles.taps;
  parts["changing targets"] = cycles.targets;
  parts["packing"] = cycles.pack;
  parts["unpacking"] = cycles.unpack;
  parts["ordering values"] = cycles.order;
  return parts;
}

py::dict part_times() {
  const sparsegan::PartTimes times = sparsegan::part_times();
  py::dict parts;
  parts["packing"] = times.pack * 1e-9;
  parts["multiplying"] = times.multiply * 1e-9;
  parts["unpacking"] = times.unpack * 1e-9;
  parts["ordering values"] = times.order * 1e-9;
  return parts;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native part of sparsegan: importing it registers the torch ops sparsegan::gather and sparsegan::wgrad.";
  m.attr("compiler") = SPARSEGAN_COMPILER;
  m.attr("sanitized") = static_cast<bool>(SPARSEGAN_SANITIZED);
  m.def("built_isas", &sparsegan::built_isas, "ISA levels compiled in, best first.");
  m.def("supported_isas", &sparsegan::supported_isas, "Those of them that this machine can run.");
  m.def("isa", [] { return std::string(sparsegan::kernels().isa); }, "The ISA level in use.");
  m.def(
      "lanes", [](bool float64) { return sparsegan::kernels().lanes[float64 ? 1 : 0]; }, py::arg("float64") = false,
      "Vector lanes of the ISA level in use.");
  m.def("set_isa", &sparsegan::set_isa, py::arg("name"), "Forces an ISA level by name; an empty name picks the best.");
  m.def("fma_gflops", &sparsegan::fma_gflops, "float32 GFLOP/s of one core on FMAs between registers.");
  m.def("workspace_bytes", &sparsegan::workspace_bytes, "Bytes of scratch memory held by all threads.");
  using sparsegan::device_plan_shape, sparsegan::plan_shape;
  m.def("compile_plan", &compile_plan<plan_shape, sparsegan::compile_plan>, py::arg("support"), py::arg("geometry"),
        py::arg("adjoint"), "Compiles a sorted int32 support for a geometry; see csrc/plan/plan.h for the layout.");
  m.def("compile_direct_plan", &compile_direct_plan, py::arg("support"), py::arg("geometry"), py::arg("adjoint"),
        "(a direct plan, the order of its values): see csrc/plan/plan.h.");
  m.def("plan_size", &plan_size<plan_shape>, py::arg("geometry"), py::arg("adjoint"), py::arg("taps"),
        "Length of that plan.");
  m.def("compile_device_plan", &compile_plan<device_plan_shape, sparsegan::compile_device_plan>, py::arg("support"),
        py::arg("geometry"), py::arg("adjoint"),
        "The same for the CUDA kernels, single elements only; see csrc/plan/device_plan.h for the layout.");
  m.def("device_plan_size", &plan_size<device_plan_shape>, py::arg("geometry"), py::arg("adjoint"), py::arg("taps"),
        "Length of that plan.");
  m.def("gather_cycles", &gather_cycles, py::arg("geometry"), py::arg("adjoint"), py::arg("taps"), py::arg("images"),
        py::arg("x_size"), py::arg("y_size"), py::arg("float64"),
        "Modelled cycles of one gather on one core, by what they go to; see csrc/cpu/conv.h.");
  m.def("part_times", &part_times, "Seconds that all threads have spent in gather's parts since the process began.");
  sparsegan::bind_codec(m);
}
