/* The header in C, without nccl.h. */
#include <openmsa/openmsa_nccl.h>

int main(void) {
  openmsa_nccl_prompt prompt = {128, {0, 384}, {128, 500}, 8};
  openmsa_nccl_division division = OPENMSA_NCCL_QUERIES;
  return prompt.num_pages == 8 && division == 3 && sizeof(&openmsa_nccl_create) > 0 ? 0 : 1;
}
