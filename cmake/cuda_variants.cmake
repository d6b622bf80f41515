# The kernel variants: each row becomes one .cu file in the build folder and one row of cuda_variants.h.
set(cuda_elements bf16 fp16)
set(cuda_element_type_bf16 cutlass::bfloat16_t)
set(cuda_element_type_fp16 cutlass::half_t)
set(cuda_element_type_e4m3 cutlass::float_e4m3_t)
set(cuda_dtype_bf16 OPENMSA_BFLOAT16)
set(cuda_dtype_fp16 OPENMSA_FLOAT16)
set(cuda_dtype_e4m3 OPENMSA_FLOAT8_E4M3)
set(cuda_dims 64 128)
set(cuda_block_sizes 64 128)
set(cuda_cached_bf16 bf16 e4m3)  # element types of the caches that go with queries of one type
set(cuda_cached_fp16 fp16 e4m3)
set(cuda_list_capacities 0 16 64)  # topk that the selection's registers hold; 0: block scores

# openmsa_cuda_variants(OUT_SOURCES): writes the files and lists the .cu ones. One file per element type and dimension:
# half of a file's compile time goes into the headers.
function(openmsa_cuda_variants out)
  set(folder ${PROJECT_BINARY_DIR}/generated)
  set(sources "")
  foreach(element IN LISTS cuda_elements)
    foreach(dim IN LISTS cuda_dims)
      set(prefill "")
      set(select "")
      foreach(block IN LISTS cuda_block_sizes)
        set(name prefill_${element}_${dim}_${block})
        set(template "${cuda_element_type_${element}}, ${dim}, ${block}")
        string(APPEND declarations "PrefillFunction ${name};\n")
        string(APPEND prefill_rows "    {${cuda_dtype_${element}}, ${dim}, ${block}, &sm90::${name}},\n")
        string(APPEND prefill "
void ${name}(const PrefillParams& p, const PrefillMaps& maps, Launch launch) {
  launch_prefill<${template}>(p, maps, launch);
}
")
        foreach(cached IN LISTS cuda_cached_${element})
          foreach(capacity IN LISTS cuda_list_capacities)
            set(name select_${element}_${cached}_${dim}_${block}_${capacity})
            set(row "${cuda_dtype_${element}}, ${cuda_dtype_${cached}}, ${dim}, ${block}, ${capacity}")
            set(types "${cuda_element_type_${element}}, ${cuda_element_type_${cached}}")
            string(APPEND declarations "SelectFunction ${name};\n")
            string(APPEND select_rows "    {${row}, &sm90::${name}},\n")
            string(APPEND select "
void ${name}(const SelectParams& p, const CUtensorMap& index_k, int max_tiles, Launch launch) {
  launch_select<SelectConfig<${types}, ${dim}, ${block}, ${capacity}>>(p, index_k, max_tiles, launch);
}
")
          endforeach()
        endforeach()
      endforeach()
      set(decode "")
      foreach(cached IN LISTS cuda_cached_${element})
        set(name ${element}_${cached}_${dim})
        set(template "${cuda_element_type_${element}}, ${cuda_element_type_${cached}}, ${dim}")
        set(row "${cuda_dtype_${element}}, ${cuda_dtype_${cached}}, ${dim}")
        string(APPEND declarations "DecodeSelectFunction decode_select_${name};\nDecodeAttendFunction decode_attend_${name};\n")
        string(APPEND decode_select_rows "    {${row}, &sm90::decode_select_${name}},\n")
        string(APPEND decode_attend_rows "    {${row}, &sm90::decode_attend_${name}},\n")
        string(APPEND decode "
void decode_select_${name}(const DecodeSelectParams& p, const CUtensorMap& index_k, Launch launch) {
  launch_decode_select<${template}>(p, index_k, launch);
}
void decode_attend_${name}(const DecodeAttendParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch) {
  launch_decode_attend<${template}>(p, k, v, launch);
}
")
      endforeach()
      foreach(stage prefill select decode)
        file(CONFIGURE OUTPUT ${folder}/${stage}_${element}_${dim}.cu @ONLY CONTENT "#include <cutlass/numeric_types.h>
#include \"cuda/sm90/@stage@/launch.cuh\"
namespace openmsa::cuda::sm90 {
${${stage}}
}  // namespace openmsa::cuda::sm90
")
        list(APPEND sources ${folder}/${stage}_${element}_${dim}.cu)
      endforeach()
    endforeach()
  endforeach()
  file(CONFIGURE OUTPUT ${folder}/cuda_variants.h @ONLY CONTENT "#pragma once
#include \"cuda/sm90/launches.h\"
namespace openmsa::cuda {
namespace sm90 {
@declarations@}  // namespace sm90
inline constexpr sm90::SelectVariant kSelectVariants[] = {
@select_rows@};
inline constexpr sm90::PrefillVariant kPrefillVariants[] = {
@prefill_rows@};
inline constexpr sm90::DecodeSelectVariant kDecodeSelectVariants[] = {
@decode_select_rows@};
inline constexpr sm90::DecodeAttendVariant kDecodeAttendVariants[] = {
@decode_attend_rows@};
}  // namespace openmsa::cuda
")
  set(${out} ${sources} PARENT_SCOPE)
endfunction()
