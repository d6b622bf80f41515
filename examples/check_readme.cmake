# Fails when README.md does not hold the examples as they are compiled and run here.
file(READ ${README} readme)
foreach(example ${EXAMPLES})
  file(READ ${example} text)
  string(FIND "${readme}" "${text}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "${README} does not quote ${example}")
  endif()
endforeach()
