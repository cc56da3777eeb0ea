// An accelerator that does not exist, on host memory. Compiled once for each kind:
//   hpu: -DKEY=HPU -DIS_HPU          mlu, npu (-DIS_NPU): -DKEY=PrivateUse1 (renamed from Python)
// Tensors carry the device's type and its dispatch keys, so everything that torch asks of a device (guards, hooks,
// allocators, autograd threads, autocast) takes the way of a real one; the arithmetic is that of the CPU. A few kernels
// stand here because torch offers no other way to them; all the rest goes through one boxed fallback, which first
// refuses operands on different devices as CUDA does.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorConversions.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <pthread.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <set>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#ifdef IS_HPU
#define NAME "HPU"
#elif defined(IS_NPU)
#define NAME "NPU"
#else
#define NAME "MLU"
#endif

namespace {

using at::Tensor;
using c10::IntArrayRef;
using c10::SymInt;
using c10::SymIntArrayRef;
using MaybeTensor = std::optional<Tensor>;

constexpr c10::DeviceType kType = c10::DeviceType::KEY;
constexpr c10::DispatchKey kKey = c10::DispatchKey::KEY;
constexpr int kMostCards = 8;

// ---- state --------------------------------------------------------------------------------------------------------
// One object, never freed: tensors may outlive the destructors of static objects.

struct State {
  std::mutex lock;
  int cards = 2;          // what device_count() says
  int usable = 2;         // highest index + 1 that this process may use: a process with an hpu has one card
  int64_t limit = 0;      // bytes a card, 0 = no limit
  bool bfloat16 = true, float64 = true;
  bool used = false, forked = false, convolved = false;
  int64_t live[kMostCards] = {}, peak[kMostCards] = {}, reads = 0;
  std::map<void*, std::pair<int64_t, int>> blocks;
  std::set<void*> pinned;
  std::set<std::string> ops;
  std::set<std::vector<int64_t>> slices;  // size, stride and offset of those that do not begin where the tensor does
  std::vector<at::Generator> generators;
  PyObject* watcher = nullptr;  // called with "read" or "convolution"
};
State& state = *new State;
thread_local c10::DeviceIndex current = 0;
thread_local int inside = 0;  // > 0 while a kernel of ours is at work: what it calls is not the program's doing

using Locked = std::lock_guard<std::mutex>;
struct Inside {
  Inside() { ++inside; }
  ~Inside() { --inside; }
};

void check_process() {
  TORCH_CHECK(!state.forked, "Cannot re-initialize " NAME " in forked subprocess. To use " NAME
              " with multiprocessing, you must use the 'spawn' or 'forkserver' start method");
}
void check_index(int64_t index) {
  TORCH_CHECK(index >= 0 && index < state.usable, NAME " error: invalid device ordinal ", index, ", this process has ",
              state.usable, " card(s)");
}
void enter(const std::string& op) {
  check_process();
  if (inside) return;
  Locked guard(state.lock);
  state.used = true;
  state.ops.insert(op);
}
void tell(const char* what) {
  if (!state.watcher || !Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;
  PyObject* result = PyObject_CallFunction(state.watcher, "s", what);
  if (!result) {
    python_error error;
    error.persist();
    throw error;
  }
  Py_DECREF(result);
}

// ---- memory -------------------------------------------------------------------------------------------------------

void release(void* block) {
  if (!block) return;
  {
    Locked guard(state.lock);
    auto found = state.blocks.find(block);
    if (found != state.blocks.end()) {
      state.live[found->second.second] -= found->second.first;
      state.blocks.erase(found);
    }
  }
  c10::free_cpu(block);
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    check_process();
    check_index(current);
    const auto bytes = static_cast<int64_t>(size);
    {
      Locked guard(state.lock);
      state.used = true;
      TORCH_CHECK_WITH(OutOfMemoryError, !state.limit || state.live[current] + bytes <= state.limit,
                       NAME " out of memory. Tried to allocate ", bytes, " bytes on card ", int(current), ", which has ",
                       state.limit, " bytes, ", state.live[current], " of them in use");
    }
    void* block = size ? c10::alloc_cpu(size) : nullptr;
    if (block) {
      Locked guard(state.lock);
      state.blocks[block] = {bytes, current};
      state.live[current] += bytes;
      state.peak[current] = std::max(state.peak[current], state.live[current]);
    }
    return {block, block, &release, c10::Device(kType, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t size) const override { memcpy(to, from, size); }
};
Memory& memory = *new Memory;
REGISTER_ALLOCATOR(kType, &memory);

void unpin(void* block) {
  {
    Locked guard(state.lock);
    state.pinned.erase(block);
  }
  c10::free_cpu(block);
}
struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* block = size ? c10::alloc_cpu(size) : nullptr;
    if (block) {
      Locked guard(state.lock);
      state.pinned.insert(block);
    }
    return {block, block, &unpin, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, std::size_t size) const override { memcpy(to, from, size); }
};
PinnedMemory& pinned_memory = *new PinnedMemory;

// ---- guard and hooks ----------------------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device getDevice() const override { return {kType, current}; }
  void setDevice(c10::Device device) const override {
    check_index(device.index());
    current = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return state.usable; }
  // one stream a card, and everything on it is done at once
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(KEY, Guard);

// DistributedDataParallel warns where a device has no timer.
struct DeviceTimer final : c10d::Timer {
  explicit DeviceTimer(std::optional<at::Device>) {}
  std::optional<int64_t> measureDifference(Event start, Event end) override {
    const auto from = getTimeRef(start), to = getTimeRef(end);
    return to < from ? std::nullopt : std::optional<int64_t>(to - from);
  }
};
using c10d::TimerRegistry;
using c10d::RegistererTimerRegistry;
C10_REGISTER_TYPED_CLASS(TimerRegistry, kType, DeviceTimer)

at::Generator& generator(c10::DeviceIndex index) {
  Locked guard(state.lock);
  while (state.generators.size() < kMostCards) state.generators.push_back(at::make_generator<at::CPUGeneratorImpl>());
  return state.generators.at(index < 0 ? current : index);
}

template <class Interface>
struct CommonHooks : Interface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return state.cards > 0; }
  void init() const override { check_process(); }
  c10::DeviceIndex deviceCount() const override { return state.usable; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    check_index(index);
    current = index;
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    const auto before = current;
    setCurrentDevice(index);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? current : exchangeDevice(index);
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override { return generator(index); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
#ifdef IS_HPU
    TORCH_CHECK(false, "Device type HPU is not supported for torch.Generator() api.");
#endif
    return at::make_generator<at::CPUGeneratorImpl>();
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* data) const override {
    Locked guard(state.lock);
    return state.pinned.count(const_cast<void*>(data));
  }
  at::Device getDeviceFromPtr(void*) const override { return {kType, current}; }
};

#ifdef IS_HPU
struct HPUHooks final : CommonHooks<at::HPUHooksInterface> {  // torch looks for exactly this name
  explicit HPUHooks(at::HPUHooksArgs) {}
  bool hasHPU() const override { return true; }
};
using at::HPUHooksRegistry;
using at::RegistererHPUHooksRegistry;
REGISTER_HPU_HOOKS(HPUHooks);
#else
struct MLUHooks final : CommonHooks<at::PrivateUse1HooksInterface> {
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override;
};
const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new MLUHooks);
  return true;
}();
#endif

// ---- kernels that torch asks for by name --------------------------------------------------------------------------

// The same memory as a CPU tensor.
Tensor host(const Tensor& t) {
  if (!t.defined() || t.device().type() != kType) return t;
  void* data = t.numel() ? t.data_ptr() : nullptr;
  return at::from_blob(data, t.sizes(), t.strides(), [t](void*) {}, t.options().device(at::kCPU));
}
MaybeTensor host(const MaybeTensor& t) { return t && t->defined() ? MaybeTensor(host(*t)) : std::nullopt; }
Tensor onto(const Tensor& result, const Tensor& like) { return result.defined() ? result.to(like.device()) : result; }

// All operands lie on one card; a CPU tensor without dimensions is a number and may take part.
struct OneDevice {
  const char* op;
  std::optional<c10::Device> first;
  void add(const Tensor& t) {
    if (!t.defined() || (t.is_cpu() && t.dim() == 0)) return;
    TORCH_CHECK(!first || *first == t.device(),
                "Expected all tensors to be on the same device, but found at least two devices, ", *first, " and ",
                t.device(), "! (when checking the operands of ", op, ")");
    first = t.device();
  }
  void add(const MaybeTensor& t) {
    if (t) add(*t);
  }
};

c10::ScalarType checked(std::optional<at::ScalarType> dtype) {
  const auto type = c10::dtype_or_default(dtype);
  TORCH_CHECK(state.float64 || (type != at::kDouble && type != at::kComplexDouble), "float64 is not supported on " NAME);
  TORCH_CHECK(state.bfloat16 || type != at::kBFloat16, "bfloat16 is not supported by this " NAME);
  return type;
}
c10::Device placed(std::optional<at::Device> device) {
  return {kType, device && device->has_index() ? device->index() : current};
}
Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  enter("aten::empty.memory_format");
  c10::DeviceGuard guard(placed(device));
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(kKey), checked(dtype), format);
}
Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  enter("aten::empty_strided");
  c10::DeviceGuard guard(placed(device));
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(kKey), checked(dtype));
}

void is_read(const Tensor& from) {
  if (inside || from.device().type() != kType) return;
  ++state.reads;
  tell("read");
}
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  enter("aten::_copy_from");
  if (to.is_cpu()) is_read(from);
  Inside here;
  host(to).copy_(host(from));
  return to;
}
Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  enter("aten::_copy_from_and_resize");
  if (to.is_cpu()) is_read(from);
  Inside here;
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  host(to).copy_(host(from));
  return to;
}
at::Scalar item(const Tensor& t) {
  enter("aten::_local_scalar_dense");
  is_read(t);
  Inside here;
  return host(t).item();
}

void grow(c10::StorageImpl* storage, size_t bytes) {
  const size_t before = storage->nbytes();
  c10::DeviceGuard guard(storage->device());
  auto block = memory.allocate(bytes);
  if (before) memcpy(block.mutable_get(), storage->data(), std::min(bytes, before));
  storage->set_data_ptr_noswap(std::move(block));
  storage->set_nbytes(bytes);
}
#ifndef IS_HPU
void MLUHooks::resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const {
  grow(storage.unsafeGetStorageImpl(), bytes);
}
#endif
const Tensor& resize_(const Tensor& t, SymIntArrayRef symbolic, std::optional<at::MemoryFormat> format) {
  enter("aten::resize_");
  const auto size = C10_AS_INTARRAYREF_SLOW(symbolic);
  const size_t bytes = (c10::multiply_integers(size) + t.storage_offset()) * t.itemsize();
  if (t.storage().nbytes() < bytes) grow(t.storage().unsafeGetStorageImpl(), bytes);
  t.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  if (format) t.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return t;
}

Tensor& set_view(Tensor& t, at::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  enter("aten::set_");
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  t.unsafeGetTensorImpl()->set_storage_offset(offset);
  t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return t;
}
Tensor& set_storage(Tensor& t, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / t.itemsize());
  return set_view(t, std::move(storage), 0, {count}, {1});
}
Tensor& set_storage_offset(Tensor& t, at::Storage storage, SymInt offset, SymIntArrayRef size, SymIntArrayRef stride) {
  return set_view(t, std::move(storage), offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size),
                  C10_AS_INTARRAYREF_SLOW(stride));
}
Tensor& set_tensor(Tensor& t, const Tensor& other) {
  return set_view(t, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

Tensor as_strided(const Tensor& t, SymIntArrayRef size, SymIntArrayRef stride, std::optional<SymInt> offset) {
  enter("aten::as_strided");
  const auto start = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  if (!inside && start.value_or(0) > 0) {
    const auto lengths = C10_AS_INTARRAYREF_SLOW(size), steps = C10_AS_INTARRAYREF_SLOW(stride);
    std::vector<int64_t> slice(lengths.begin(), lengths.end());
    slice.insert(slice.end(), steps.begin(), steps.end());
    slice.push_back(*start);
    Locked guard(state.lock);
    state.slices.insert(slice);
  }
  return at::native::as_strided_tensorimpl(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}
Tensor view(const Tensor& t, SymIntArrayRef size) {
  enter("aten::view");
  return at::native::view(t, C10_AS_INTARRAYREF_SLOW(size));
}
Tensor reshape_alias(const Tensor& t, SymIntArrayRef size, SymIntArrayRef stride) {
  enter("aten::_reshape_alias");
  return at::native::_reshape_alias(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}
Tensor unfold(const Tensor& t, int64_t dimension, int64_t size, int64_t step) {
  enter("aten::unfold");
  return at::native::unfold(t, dimension, size, step);
}

// The kernel behind at::convolution throws for a device that brings none, so the fallback would never be reached.
void first_convolution() {
  if (std::exchange(state.convolved, true)) return;
  tell("convolution");
}
Tensor convolution(const Tensor& x, const Tensor& w, const MaybeTensor& b, SymIntArrayRef stride,
                   SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding,
                   SymInt groups) {
  enter("aten::convolution_overrideable");
  OneDevice same{"convolution"};
  same.add(x), same.add(w), same.add(b);
  first_convolution();
  Inside here;
  return onto(at::convolution(host(x), host(w), host(b), C10_AS_INTARRAYREF_SLOW(stride),
                              C10_AS_INTARRAYREF_SLOW(padding), C10_AS_INTARRAYREF_SLOW(dilation), transposed,
                              C10_AS_INTARRAYREF_SLOW(output_padding), groups.expect_int()),
              x);
}
std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& w, SymIntArrayRef stride, SymIntArrayRef padding,
    SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding, SymInt groups, std::array<bool, 3> mask) {
  enter("aten::convolution_backward_overrideable");
  OneDevice same{"convolution_backward"};
  same.add(gradient), same.add(x), same.add(w);
  Inside here;
  const auto g = groups.expect_int();
  const std::vector<int64_t> bias{transposed ? w.size(1) * g : w.size(0)};
  auto [dx, dw, db] = at::convolution_backward(
      host(gradient), host(x), host(w), IntArrayRef(bias), C10_AS_INTARRAYREF_SLOW(stride),
      C10_AS_INTARRAYREF_SLOW(padding), C10_AS_INTARRAYREF_SLOW(dilation), transposed,
      C10_AS_INTARRAYREF_SLOW(output_padding), g, mask);
  return {onto(dx, x), onto(dw, x), onto(db, x)};
}

// The schema does not say that the running statistics change, so the fallback would update copies and drop them.
std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& x, const MaybeTensor& w, const MaybeTensor& b,
                                              const MaybeTensor& mean, const MaybeTensor& variance, bool training,
                                              double momentum, double eps) {
  enter("aten::native_batch_norm");
  OneDevice same{"native_batch_norm"};
  same.add(x), same.add(w), same.add(b), same.add(mean), same.add(variance);
  Inside here;
  auto [y, m, s] = at::native_batch_norm(host(x), host(w), host(b), host(mean), host(variance), training, momentum, eps);
  return {onto(y, x), onto(m, x), onto(s, x)};
}

// ---- everything else ----------------------------------------------------------------------------------------------

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  static const auto& mixed = *new std::set<std::string>{"aten::index", "aten::_index_put_impl_", "aten::set_"};
  const auto& name = op.operator_name();
  enter(c10::toString(name));
  if (!mixed.count(name.name)) {
    OneDevice same{name.name.c_str()};
    for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
      if (value.isTensor()) {
        same.add(value.toTensor());
      } else if (value.isTensorList()) {
        for (const Tensor& t : value.toTensorVector()) same.add(t);
      }
    }
  }
  Inside here;
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, KEY, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, KEY, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("unfold", unfold);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage_storage_offset", set_storage_offset);
  m.impl("native_batch_norm", batch_norm);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

// Without these torch knows no way through autocast for this device. The lists are torch's own, not the vendor's.
TORCH_LIBRARY_IMPL(_, JOIN(Autocast, KEY), m) { m.fallback(torch::CppFunction::makeFallthrough()); }
#define LOWER(...) KERNEL(kType, __VA_ARGS__, lower_precision_fp)
#define SINGLE(...) KERNEL(kType, __VA_ARGS__, fp32)
#define SINGLE_DTYPE(...) KERNEL(kType, __VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL(kType, __VA_ARGS__, promote)
#ifndef IS_HPU
Tensor banned(const Tensor&, const Tensor&, const MaybeTensor&, int64_t) {
  TORCH_CHECK(false, "torch.nn.functional.binary_cross_entropy is unsafe to autocast; use the form with logits");
}
#endif
TORCH_LIBRARY_IMPL(aten, JOIN(Autocast, KEY), m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(SINGLE)
  AT_FORALL_FP32_SET_OPT_DTYPE(SINGLE_DTYPE)
  AT_FORALL_PROMOTE(WIDEST)
#ifndef IS_HPU
  m.impl("binary_cross_entropy", banned);
#endif
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  pthread_atfork([] { state.lock.lock(); }, [] { state.lock.unlock(); },
                 [] {
                   state.lock.unlock();
                   state.forked = state.forked || state.used;
                 });
  m.def("configure", [](int cards, int64_t limit, bool bfloat16, bool float64) {
    TORCH_CHECK(cards >= 0 && cards <= kMostCards, "0 to ", kMostCards, " cards can be emulated, not ", cards);
    state.cards = cards;
#ifdef IS_HPU
    state.usable = std::min(cards, 1);
#else
    state.usable = cards;
#endif
    state.limit = limit;
    state.bfloat16 = bfloat16;
    state.float64 = float64;
  });
  m.def("watch", [](py::function watcher) { state.watcher = watcher.release().ptr(); });
  m.def("check_process", check_process);
  m.def("check_index", check_index);
  m.def("forked", [] { return state.forked; });
  m.def("used", [] { return state.used; });
  m.def("use", [] {
    check_process();
    state.used = true;
  });
  m.def("device_count", [] { return state.cards; });
  m.def("current_device", [] { return int(current); });
  m.def("set_device", [](int index) {
    check_process();
    check_index(index);
    state.used = true;
    current = index;
  });
  m.def("live_bytes", [](int index) { return state.live[index]; });
  m.def("peak_bytes", [](int index) { return state.peak[index]; });
  m.def("limit_bytes", [] { return state.limit; });
  m.def("reset_peak", [](int index) { state.peak[index] = state.live[index]; });
  m.def("generator", [](int index) { return generator(index); });
  m.def("host_alias", [](const Tensor& t) { return host(t); });
  m.def("reads", [] { return state.reads; });
  m.def("slices", [] { return state.slices.size(); });
  m.def("ops", [] {
    Locked guard(state.lock);
    return std::vector<std::string>(state.ops.begin(), state.ops.end());
  });
}
