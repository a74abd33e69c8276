"""Chapter 2: classifier-free guidance written out, and text-conditional training and sampling."""
