"""Serving engines that are installed here, each as it is beside itself with openmsa in it."""
