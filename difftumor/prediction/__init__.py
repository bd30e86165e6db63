"""From files to files: label maps, lesions and pictures of many scans."""
